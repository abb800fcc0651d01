"""`eridiff serve`: Prefect's server, its setup, the deployments and a worker, here, until Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from eridiff.errors import EridiffError, RecipeError
from stages.stage import StopFlag, stopping

logger = logging.getLogger("eridiff")

POOL = "eridiff-local"
START_S = 180.0
STOP_S = 60.0
"""How long the worker may take to end: its runs save a checkpoint meanwhile."""

_PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")


def serve(*, host: str, port: int, jobs: int) -> None:
    """Runs everything until SIGINT or SIGTERM, or until one of the processes ends by itself.

    Args:
        host: address that the server listens on.
        port: likewise.
        jobs: flow runs at a time on this machine.

    Raises:
        RecipeError: this is no project folder, or the port is taken.
        EridiffError: a process ended by itself.
    """
    if not Path("prefect.yaml").is_file():
        raise RecipeError(
            "There are no deployments here.",
            where=Path.cwd(),
            wanted="prefect.yaml",
            fix="run this in the project's folder",
        )
    url = f"http://{host}:{port}/api"
    if _healthy(url):
        raise RecipeError("A server runs there already.", where=url, fix="choose another --port, or use it")
    gpus, limit = len(list(Path("/dev").glob("nvidia[0-9]*"))), f"gpu-{os.uname().nodename}"
    environment = _environment(url, limit if gpus else None)
    with (
        stopping() as stop,
        _running([*_PREFECT, "server", "start", "--host", host, "--port", str(port)], environment) as server,
    ):
        _wait_until_healthy(url, server, stop)
        if stop:
            return
        setup = [sys.executable, "-m", "flows.setup", "--pool", POOL]
        _run([*setup, "--gpu-limit", limit, "--gpus", str(gpus)] if gpus else setup, environment)
        _run([*_PREFECT, "deploy", "--all"], environment)
        worker_command = [*_PREFECT, "worker", "start", "--pool", POOL, "--limit", str(jobs)]
        with _running(worker_command, environment) as worker:
            logger.info("Serving: http://%s:%d, Ctrl-C ends it. In another shell:", host, port)
            logger.info("export PREFECT_API_URL=%s", url)
            _watch({"the server": server, "the worker": worker}, stop)
    logger.info("Stopped.")


def _environment(url: str, gpu_limit: str | None) -> dict[str, str]:
    own = {
        "PREFECT_API_URL": url,
        "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(Path(".prefect").absolute())),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    return {**os.environ, **own, **({"ERIDIFF_GPU_LIMIT": gpu_limit} if gpu_limit else {})}


@contextmanager
def _running(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a session of its own, so that Ctrl-C reaches it by way of us, in our order."""
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, start_new_session=True)
    if done.returncode:
        raise EridiffError(
            "A step of the setup failed.", where=" ".join(command[1:]), found=done.stdout + done.stderr
        )


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], stop: StopFlag) -> None:
    end = time.monotonic() + START_S
    while not stop and not _healthy(url):
        if server.poll() is not None:
            raise EridiffError("The server did not start.", found=f"exit code {server.returncode}")
        if time.monotonic() > end:
            raise EridiffError(
                "The server did not start.", where=url, found=f"no answer within {START_S:g} s"
            )
        time.sleep(0.2)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _watch(processes: Mapping[str, subprocess.Popen[bytes]], stop: StopFlag) -> None:
    while not stop:
        for name, process in processes.items():
            if process.poll() is not None:
                raise EridiffError(f"{name} ended by itself.", found=f"exit code {process.returncode}")
        time.sleep(0.2)

"""`eridiff serve` and `eridiff worker`: Prefect's processes on this machine, ended in the right order."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from eridiff.errors import EridiffError, RecipeError
from stages.drain import drain, healthy
from stages.stage import StopFlag, stopping

logger = logging.getLogger("eridiff")

START_S = 180.0
STOP_S = 60.0
"""How long runs may take to save, and a process to end."""

_PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")


def serve(*, host: str, port: int, pool: str, jobs: int) -> None:
    """Server, pool, GPU limit, automations, deployments and a worker, until SIGINT or SIGTERM.

    Args:
        host: address that the server listens on.
        port: likewise.
        pool: the process pool that deployments name.
        jobs: flow runs at a time on this machine.

    Raises:
        RecipeError: this is no project folder, or a server runs there already.
        EridiffError: a process failed, or ended by itself.
    """
    if not Path("prefect.yaml").is_file():
        raise RecipeError(
            "There are no deployments here.",
            where=Path.cwd(),
            wanted="prefect.yaml",
            fix="run it in the project",
        )
    url = f"http://{host}:{port}/api"
    if healthy(url):
        raise RecipeError("A server runs there already.", where=url, fix="choose another --port, or use it")
    environment = _environment(url)
    command = [*_PREFECT, "server", "start", "--host", host, "--port", str(port)]
    with stopping() as stop, _running(command, environment) as server:
        _wait_until_healthy(url, server, stop)
        if stop:
            return
        limit = environment.get("ERIDIFF_GPU_LIMIT")
        limits = ["--gpu-limit", limit, "--gpus", str(_num_gpus())] if limit else []
        _run([sys.executable, "-m", "flows.setup", "--pool", pool, *limits], environment)
        _run([*_PREFECT, "deploy", "--all"], environment)
        with _worker(url, pool, jobs, environment) as worker:
            logger.info("Serving http://%s:%d until Ctrl-C. In another shell:", host, port)
            logger.info("export PREFECT_API_URL=%s", url)
            _wait({"the server": server, "the worker": worker}, stop)
    logger.info("Stopped.")


def work(*, url: str, pool: str, jobs: int) -> None:
    """A worker for a server elsewhere, until SIGINT or SIGTERM; its runs save before it ends.

    Raises:
        RecipeError: no server answers.
        EridiffError: the worker ended by itself.
    """
    if not healthy(url):
        raise RecipeError(
            "No Prefect server answers.",
            where=url,
            fix="export PREFECT_API_URL=http://HOST:4200/api, as `eridiff serve` says",
        )
    with stopping() as stop, _worker(url, pool, jobs, _environment(url)) as worker:
        _wait({"the worker": worker}, stop)


def _num_gpus() -> int:
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _environment(url: str) -> dict[str, str]:
    own = {
        "PREFECT_API_URL": url,
        "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(Path(".prefect").absolute())),
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "3"),
        "DO_NOT_TRACK": "1",
    }
    if _num_gpus():
        own["ERIDIFF_GPU_LIMIT"] = os.environ.get("ERIDIFF_GPU_LIMIT", f"gpu-{os.uname().nodename}")
    return {**os.environ, **own}


@contextmanager
def _worker(
    url: str, pool: str, jobs: int, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    command = [*_PREFECT, "worker", "start", "--pool", pool, "--limit", str(jobs)]
    with _running(command, environment) as worker:
        try:
            yield worker
        finally:
            if worker.poll() is None and healthy(url):
                drain(url, worker.pid, wait_s=STOP_S)


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
    while not stop and not healthy(url):
        if server.poll() is not None:
            raise EridiffError("The server did not start.", found=f"exit code {server.returncode}")
        if time.monotonic() > end:
            raise EridiffError(
                "The server did not start.", where=url, found=f"no answer within {START_S:g} s"
            )
        time.sleep(0.2)


def _wait(processes: Mapping[str, subprocess.Popen[bytes]], stop: StopFlag) -> None:
    while not stop:
        for name, process in processes.items():
            if process.poll() is not None:
                raise EridiffError(f"{name} ended by itself.", found=f"exit code {process.returncode}")
        time.sleep(0.2)

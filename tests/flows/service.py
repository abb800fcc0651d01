"""A real Prefect server and workers for one test, in a home of their own, ended by their process ids."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError

from stages.drain import call, healthy

ROOT = Path(__file__).parents[2]
PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
POOL = "eridiff-local"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Service:
    """A server on a free port, with everything it needs below `folder`."""

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=lambda: free_port())
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_DOCKET_NAME": f"docket-{self.port}",
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            **self.settings,
        }

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start_server()
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.started):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in reversed(self.started):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start_server(self) -> subprocess.Popen[bytes]:
        server = self.start("server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        wait_for(lambda: healthy(self.url), "the server", seconds=180)
        return server

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self.start("worker", "start", "--pool", POOL, "--limit", "2")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{arguments[0]}-{len(self.started)}.log").open("wb")
        process = subprocess.Popen(
            [*PREFECT, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()
        self.started.append(process)
        return process

    def prefect(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*PREFECT, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True
        )
        if check and done.returncode:
            raise AssertionError(f"prefect {' '.join(arguments)}: {done.stdout}\n{done.stderr}")
        return done

    def deploy(self) -> None:
        self.prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
        self.prefect("deploy", "--all")

    def run(self, deployment: str, **parameters: Any) -> str:
        """Creates a run and returns its id."""
        flow, name = deployment.split("/")
        found = self.get(f"/deployments/name/{flow}/{name}")
        made = self.post(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return made["id"]

    def refuses(self, deployment: str, **parameters: Any) -> bool:
        """Whether the server answers that such a run is asked for wrongly."""
        try:
            self.run(deployment, **parameters)
        except HTTPError as error:
            return 400 <= error.code < 500
        return False

    def state(self, run: str) -> dict[str, Any]:
        return self.get(f"/flow_runs/{run}")["state"]

    def finished(self, run: str, *, seconds: float = 400) -> dict[str, Any]:
        """The state of a run once it is final."""
        wait_for(lambda: self.state(run)["type"] in FINAL, f"run {run}", seconds=seconds)
        return self.state(run)

    def runs(self, **filters: Any) -> list[dict[str, Any]]:
        return self.post("/flow_runs/filter", filters)

    def logs(self, run: str) -> list[str]:
        found = self.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"})
        return [entry["message"] for entry in found]

    def get(self, path: str) -> Any:
        return call(self.url, path)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return call(self.url, path, body)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], bool], what: str, *, seconds: float, every: float = 0.2) -> None:
    """Returns once the condition holds.

    Raises:
        AssertionError: it does not hold in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(every)

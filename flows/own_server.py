"""A Prefect server for one process, where no other is named: it keeps the run's history, and ends with it.

Prefect has one of its own for this, which imports the whole server a second time in the caller's process,
gives up after 20 s on a busy machine, and lives on when the caller is killed. This is the same application.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    get_current_settings,
    temporary_settings,
)

from eridiff.errors import EridiffError
from stages.drain import healthy

START_S = 180.0
STOP_S = 5.0
ALONE = {
    "PREFECT__SERVER_EPHEMERAL": "1",  # only the services that a single run needs
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_UI_ENABLED": "false",
}


@contextmanager
def some_server() -> Iterator[None]:
    """The server that Prefect's settings name; where they name none, one of our own until the block ends.

    Raises:
        EridiffError: our own does not start.
    """
    if get_current_settings().api.url is not None:
        yield
        return
    url = _start()
    with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _start() -> str:
    """Starts a server that ends after Prefect's own clean-up at exit, which sends the last log lines."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "flows.own_server", str(port)]
    # A session of its own: Ctrl-C is for the flow, which still has to tell the server how it ended.
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, env={**os.environ, **ALONE}, start_new_session=True
    )
    atexit.register(_stop, server)
    url = f"http://127.0.0.1:{port}/api"
    _wait_for(server, url)
    return url


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    if server.stdin is not None:
        server.stdin.close()


def _wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + START_S
    while not healthy(url):
        if server.poll() is not None or time.monotonic() > end:
            raise EridiffError(
                "Prefect's server did not start.",
                found=f"exit code {server.returncode}"
                if server.returncode
                else f"no answer in {START_S:g} s",
                fix="see its message above; `eridiff run` needs no server",
            )
        time.sleep(0.05)


def _end_with_parent() -> None:
    """Ends this process when its standard input closes: its parent is gone, however it went."""
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    import uvicorn

    threading.Thread(target=_end_with_parent, daemon=True).start()
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="error",
        lifespan="on",
    )

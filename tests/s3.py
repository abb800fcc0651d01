"""A server that speaks S3's protocol: moto's, a process of its own, on a port of its own."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class Server:
    """Where it listens."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        """What tells a program of it, by AWS's own variables."""
        return {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": self.url}


@contextmanager
def s3_server() -> Iterator[Server]:
    """The server with an empty bucket; the test is skipped where it is not installed."""
    for module in ("s3fs", "moto", "flask"):
        if not importlib.util.find_spec(module):
            pytest.skip(f"{module} is not installed")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        server = Server(f"http://127.0.0.1:{port}")
        _wait(server.url, process)
        request = urllib.request.Request(f"{server.url}/{BUCKET}", method="PUT", data=b"")
        urllib.request.urlopen(request, timeout=30).close()
        yield server
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("moto's server did not start")

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from eridiff.errors import Interrupted, StoreError
from eridiff.locks import held

HOLD = """
import sys, time
from pathlib import Path
from eridiff.locks import held
with held(Path(sys.argv[1]), "the run"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "run" / "training.lock"


@pytest.fixture
def holder(lock: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_who_does_not_wait_is_told_by_whom_it_is_held(lock: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(StoreError) as caught, held(lock, "the run", wait=False):
        pytest.fail("two processes held one lock")
    said = str(caught.value)
    assert f"process {holder.pid} on {socket.gethostname()}" in said
    assert str(lock) in said
    assert "the run" in said


def test_who_waits_says_so_and_goes_on_once_the_holder_is_killed(
    lock: Path, holder: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "eridiff"):
        threading.Timer(0.3, os.kill, [holder.pid, signal.SIGKILL]).start()
        started = time.monotonic()
        with held(lock, "the run", poll_s=0.05):
            assert 0.2 < time.monotonic() - started < 10
            assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert f"Waiting for the run: process {holder.pid} on {socket.gethostname()}" in caplog.text


def test_a_signal_ends_the_wait(lock: Path, holder: subprocess.Popen[str]) -> None:
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGTERM]).start()
    with pytest.raises(Interrupted, match="waiting for the run"), held(lock, "the run", poll_s=0.05):
        pytest.fail("two processes held one lock")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_it_is_free_again_after_the_block_even_with_an_error(lock: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="stop"), held(lock, "the run", wait=False):
            raise RuntimeError("stop")


def test_a_file_system_without_locks_is_warned_of(
    lock: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held(lock, "the run"):
        pass
    assert "file system without locks" in caplog.text

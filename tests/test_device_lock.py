from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from eridiff.device_lock import FOLDER_VARIABLE, device_lock, lock_names
from eridiff.errors import Interrupted

HOLD = """
import time
from eridiff.device_lock import device_lock
with device_lock("cuda:3"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("device", "environment", "names"),
    [
        ("cpu", {}, ()),
        ("mps", {}, ()),
        ("cuda", {}, ("cuda-0",)),
        ("cuda:1", {}, ("cuda-1",)),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "2,5"}, ("cuda-5",)),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-8f/1"}, ("cuda-GPU-8f-1",)),
        ("cuda", {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ("cuda-0", "cuda-1")),
        ("cuda", {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}, ()),
    ],
)
def test_a_lock_is_named_by_the_machines_device(
    device: str, environment: dict[str, str], names: tuple[str, ...]
) -> None:
    assert lock_names(device, environment) == names


def test_a_cpu_takes_no_lock(locks: Path) -> None:
    with device_lock("cpu"):
        assert not list(locks.iterdir())


def test_a_second_job_waits_until_the_first_is_gone_even_killed(
    locks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError), _alarm(0.5), device_lock("cuda:3", poll_s=0.05):
            pytest.fail("two jobs held one device")
        with device_lock("cuda:2"):  # another device is free
            pass
        with caplog.at_level(logging.INFO, "eridiff"):
            os.kill(holder.pid, signal.SIGKILL)
            started = time.monotonic()
            with device_lock("cuda:3", poll_s=0.05):
                assert time.monotonic() - started < 5
    finally:
        holder.kill()
        holder.communicate()


def test_a_signal_ends_the_wait(locks: Path) -> None:
    with device_lock("cuda"):
        threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGTERM]).start()
        with pytest.raises(Interrupted), device_lock("cuda", poll_s=0.05):
            pytest.fail("two jobs held one device")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_lock_is_free_again_after_the_block(locks: Path) -> None:
    for _ in range(2):
        with device_lock("cuda"):
            assert str(os.getpid()) in (locks / "cuda-0.lock").read_text()


class _alarm:  # noqa: N801 - reads as a statement
    """Raises TimeoutError in the block after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        def ring(*_: object) -> None:
            raise TimeoutError

        self.before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)

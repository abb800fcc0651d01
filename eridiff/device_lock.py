"""One job at a time on a GPU: a lock file a device, kept by the kernel: a killed job frees it at once.

Orchestrators have limits of their own, which a command line does not ask. The file is locked by every stage
before it puts a model on a CUDA device; CPU work takes no lock.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from eridiff.errors import Interrupted

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "ERIDIFF_LOCKS"
"""Environment variable: the folder of lock files; by default one in the machine's temporary folder."""


@contextmanager
def device_lock(device: str, *, poll_s: float = 1.0) -> Iterator[None]:
    """Waits until no other job holds `device`, and holds it until the block ends or the process dies.

    Of processes that torchrun started, the first of each machine takes all devices, in their order, so that
    two such jobs cannot hold half each; the others take none.

    Args:
        device: as torch writes it: `cuda`, `cuda:1`, `cpu`. Anything but CUDA needs no lock.
        poll_s: seconds between looks at a lock that another job holds.

    Raises:
        Interrupted: the process was asked to stop while it waited.
    """
    names = lock_names(device, os.environ)
    files = [_opened(_folder() / f"{name}.lock") for name in names]
    try:
        for file, name in zip(files, names, strict=True):
            _take(file, name, poll_s)
        yield
    finally:
        for file in files:
            file.close()


def lock_names(device: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the locks that a job on `device` takes, by the machine's own numbering.

    Args:
        device: as torch writes it.
        environment: `CUDA_VISIBLE_DEVICES` renumbers devices; `LOCAL_RANK` and `LOCAL_WORLD_SIZE` are
            torchrun's.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return ()
    size = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if size > 1:
        first = environment.get("LOCAL_RANK", "0") == "0"
        return tuple(f"cuda-{_physical(index, environment)}" for index in range(size)) if first else ()
    return (f"cuda-{_physical(int(number or 0), environment)}",)


def _physical(index: int, environment: Mapping[str, str]) -> str:
    visible = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return visible[index].replace("/", "-") if index < len(visible) and visible[index] else str(index)


def _folder() -> Path:
    chosen = os.environ.get(FOLDER_VARIABLE)
    folder = Path(chosen) if chosen else Path(tempfile.gettempdir()) / "eridiff-locks"
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)  # other users of the machine share the device, and so its lock
    return folder


def _opened(path: Path) -> IO[str]:
    previous = os.umask(0)
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
    finally:
        os.umask(previous)


def _take(file: IO[str], name: str, poll_s: float) -> None:
    if not _got(file):
        logger.info("Waiting for device %s: %s", name, _holder(file))
        with _interruptible(name):
            while not _got(file):
                time.sleep(poll_s)
    file.seek(0)
    file.truncate()
    json.dump({"pid": os.getpid(), "command": " ".join(sys.argv)[:200]}, file)
    file.flush()


def _got(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _interruptible(name: str) -> Iterator[None]:
    """Lets SIGTERM and SIGINT end the wait, whatever else they would do; in the main thread only."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(
            f"Stopped while waiting for device {name}.", fix="run the same command again to go on from there"
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.load(file)
    except ValueError:  # it has the lock and has not said yet who it is
        return "another job holds it"
    return f"process {holder['pid']} holds it ({holder['command']})"

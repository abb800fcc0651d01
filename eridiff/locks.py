"""Files that one process at a time holds: the kernel unlocks them when it ends, killed or not."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from eridiff.errors import Interrupted, StoreError
from eridiff.store.faults import writing

logger = logging.getLogger(__name__)

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}


@contextmanager
def held(path: Path, what: str, *, wait: bool = True, poll_s: float = 1.0) -> Iterator[None]:
    """Holds the lock file at `path` until the block ends; it says who holds it and stays where it is.

    On a file system without locks it only warns.

    Args:
        path: of the file, made where it is not there.
        what: is locked, for people.
        wait: whether to wait until nobody else holds it.
        poll_s: seconds between looks meanwhile.

    Raises:
        StoreError: another process holds it, and it is not to be waited for; or the file cannot be written.
        Interrupted: the process was asked to stop while it waited.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder like /tmp, Linux lets nobody "create" a file that is there and another user's.
        create = 0 if path.exists() else os.O_CREAT
        file = os.fdopen(os.open(path, os.O_RDWR | create | os.O_CLOEXEC, 0o666), "r+")
    with file:
        _take(file, what, wait=wait, poll_s=poll_s)
        with writing(path):
            _sign(file)
        yield


def _take(file: IO[str], what: str, *, wait: bool, poll_s: float) -> None:
    if _got(file, what):
        return
    if not wait:
        raise StoreError(
            f"Another process is at {what}.",
            where=file.name,
            found=_holder(file),
            fix="wait until it ends, or stop it; it saves what it has",
        )
    logger.info("Waiting for %s: %s", what, _holder(file))
    with _interruptible(what):
        while not _got(file, what):
            time.sleep(poll_s)


def _got(file: IO[str], what: str) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "%s is on a file system without locks: see to it that one process at a time is at %s.",
            file.name,
            what,
        )
    return True


def _sign(file: IO[str]) -> None:
    file.seek(0)
    file.truncate()
    command = " ".join(sys.argv)[:200]
    json.dump({"pid": os.getpid(), "host": socket.gethostname(), "command": command}, file)
    file.flush()


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.load(file)
        return f"process {holder['pid']} on {holder['host']} holds it ({holder['command']})"
    except (ValueError, KeyError):  # it has the lock and has not said yet who it is
        return "another process holds it"


@contextmanager
def _interruptible(what: str) -> Iterator[None]:
    """Lets SIGTERM and SIGINT end the wait, whatever else they would do; in the main thread only."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(
            f"Stopped while waiting for {what}.", fix="run the same command again to go on from there"
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

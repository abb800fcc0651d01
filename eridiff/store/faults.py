"""What the system says when a file cannot be written, as errors with a remedy."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eridiff.errors import StoreError

_FULL = {errno.ENOSPC, errno.EFBIG}
_QUOTA = errno.EDQUOT
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_READ_ONLY = errno.EROFS


@contextmanager
def writing(path: Path, num_bytes: int = 0) -> Iterator[None]:
    """Tells what `cannot_write` knows of a failure to write a file."""
    try:
        yield
    except OSError as error:
        if told := cannot_write(error, path, num_bytes):
            raise told from error
        raise


def cannot_write(error: OSError, path: Path, num_bytes: int) -> StoreError | None:
    """The error for a failed writing of a file; `None` for one that says something else, as a lost disk.

    Args:
        error: what the system said.
        path: the file that was to be written, of which nothing is left.
        num_bytes: how large it was to be, as far as known.
    """
    if error.errno in _FULL:
        return _full(path, num_bytes)
    if error.errno == _QUOTA:
        return StoreError(
            "The disk quota is reached: nothing was written.",
            where=path,
            found=f"{num_bytes} bytes more are not allowed to user {os.getuid()}",
            fix="free some of your space (`quota`, `eridiff gc`) or point storage at another disk, "
            "then run the same command again",
        )
    if error.errno == _READ_ONLY:
        return StoreError(
            "The file system is read-only: nothing was written.",
            where=path,
            fix="mount it for writing, or point storage at a folder that can be written to",
        )
    if error.errno in _FORBIDDEN and _is_about(error, path):
        return StoreError(
            "Writing is not allowed here: nothing was written.",
            where=path,
            found=_owner(path.parent),
            wanted=f"a folder that user {os.getuid()} may write to",
            fix="change its owner or mode, or point storage at another folder",
        )
    return None


def _is_about(error: OSError, path: Path) -> bool:
    """Whether it is this place that refused, and not a file that was read meanwhile."""
    at = Path(error.filename or "/")
    return error.filename is not None and (at.parent == path.parent or at in path.parents)


def _full(path: Path, num_bytes: int) -> StoreError:
    return StoreError(
        "The disk is full: nothing was written.",
        where=path,
        found=f"{shutil.disk_usage(_existing(path)).free} bytes free",
        wanted=f"at least {num_bytes} bytes",
        fix="free some space or point storage at another disk, then run the same command again",
    )


def _owner(folder: Path) -> str:
    there = _existing(folder)
    status = there.stat()
    return f"{there} of user {status.st_uid}, mode {status.st_mode & 0o7777:04o}"


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    above = (path, *path.absolute().parents)
    # os.path, which takes a folder that may not be looked into for absent; pathlib raises
    return next(folder for folder in above if os.path.exists(folder))  # noqa: PTH110

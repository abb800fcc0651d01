"""What the system says when a file cannot be written or removed, as errors with a remedy."""

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
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST}
_NOT_MADE = errno.ENOENT


@contextmanager
def removing(what: object) -> Iterator[None]:
    """Tells why a file or folder cannot be removed; what is gone already stays a FileNotFoundError."""
    try:
        yield
    except OSError as error:
        if error.errno != _READ_ONLY and error.errno not in _FORBIDDEN:
            raise
        raise StoreError(
            "This cannot be removed, or not all of it.",
            where=what,
            found=error,
            wanted=f"folders that user {os.getuid()} may write to",
            fix="mount the disk for writing, or change owner or mode, then run the same command again",
        ) from error


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
        num_bytes: how large it was to be; where that is not known, how large it got.
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
    if error.errno in _IN_THE_WAY:
        return no_folder(path.parent)
    if error.errno == _NOT_MADE and _is_of_a_folder_above(error, path):
        return StoreError(
            "A folder cannot be made here: nothing was written.",
            where=path,
            found=error,
            wanted="a file system in which folders can be made",
            fix="point storage at another folder",
        )
    return None


def no_folder(path: Path) -> StoreError | None:
    """The error for a folder in whose place, or above it, a file stands; `None` where none does."""
    there = next(at for at in (path.absolute(), *path.absolute().parents) if os.path.lexists(at))
    if os.path.isdir(there):  # noqa: PTH112 - pathlib raises where a folder may not be looked into
        return None
    return StoreError(
        "A file stands where a folder is wanted.",
        where=path,
        found=f"{there} is no folder",
        wanted="a folder, or a place to make one",
        fix="move the file away, or point storage at another folder",
    )


def _is_about(error: OSError, path: Path) -> bool:
    """Whether it is this place that refused, and not a file that was read meanwhile."""
    beside = error.filename is not None and Path(error.filename).parent == path.parent
    return beside or _is_of_a_folder_above(error, path)


def _is_of_a_folder_above(error: OSError, path: Path) -> bool:
    """Whether it is a folder for the file that could not be made: what is read lies elsewhere."""
    return error.filename is not None and Path(error.filename) in path.parents


def _full(path: Path, num_bytes: int) -> StoreError:
    return StoreError(
        "The disk is full: nothing was written.",
        where=path,
        # The part that fitted is removed by now, and counts as free again: as much did not do.
        found=f"{shutil.disk_usage(_existing(path)).free} bytes free",
        wanted=f"more than {num_bytes} bytes",
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

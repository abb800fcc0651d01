"""Files that are whole or absent, and digests that name them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from eridiff.errors import StoreError
from eridiff.store.faults import cannot_write, removing
from eridiff.store.paths import AnyPath
from eridiff.store.remote import RemotePath

logger = logging.getLogger(__name__)

TEMPORARY_SUFFIX = ".tmp"
"""Names of files being written are `.<name>.<random>.tmp`: readers pass over them."""

_WORTH_A_LINE_BYTES = 1_000_000_000
_SETTLED_NS = 2_000_000_000
"""A file changed less than this before it was read may change again without a new mtime."""


def digest_bytes(data: bytes | bytearray | memoryview) -> str:
    """The sha256 of `data`, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: str | Path) -> str:
    """The sha256 of the bytes of the file at `path`, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, no NaN.

    Raises:
        TypeError: the value holds something that JSON has not.
        ValueError: the value holds a NaN or an infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_json(value: Any) -> str:
    """The sha256 of a JSON-able value, whatever the order of its keys, 64 hexadecimal digits."""
    return digest_bytes(canonical_json(value))


@contextmanager
def atomic_path(path: str | AnyPath) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends, whole and on disk.

    The file beside `path` is flushed to disk, renamed, and the folder flushed. If the block raises, the
    temporary file is removed and `path` stays as it was. A process killed on the way leaves a `.*.tmp` file
    that no reader looks at (see `remove_abandoned`). A file elsewhere is put there whole, and a copy of it
    stays in the cache: only files that never change under their name are to be written so.

    Raises:
        StoreError: the disk is full, a quota is reached, or writing there is not possible or not allowed.
    """
    if isinstance(path, RemotePath):
        with path.staged() as temporary:
            yield temporary
        return
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")
    size = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        size = temporary.stat().st_size
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except BaseException as error:
        with suppress(OSError):
            size = size or temporary.stat().st_size
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and (told := cannot_write(error, path, size)):
            raise told from error
        raise


def write_atomic(path: str | AnyPath, data: bytes | bytearray | memoryview) -> None:
    """Writes `data` to `path` so that the file is whole or as it was before.

    Raises:
        StoreError: the disk is full, a quota is reached, or writing there is not possible or not allowed; it
            names the path and, where it matters, the number of bytes.
    """
    if isinstance(path, RemotePath):
        path.write_bytes(data)
        return
    path = Path(path)
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except StoreError as error:
        if isinstance(error.__cause__, OSError) and (told := cannot_write(error.__cause__, path, len(data))):
            raise told from error.__cause__
        raise


def write_json(path: str | AnyPath, value: Any) -> None:
    """Writes a JSON-able value to `path` for people to read, whole or not at all."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(path, f"{text}\n".encode())


def read_json(path: str | AnyPath, *, fix: str) -> Any:
    """The value in a JSON file of the pipeline's own.

    Args:
        path: the file.
        fix: what the user can do if it cannot be read.

    Raises:
        StoreError: it is absent, or no JSON.
    """
    path = Path(path) if isinstance(path, str) else path
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(
            "A file of the pipeline cannot be read.", where=path, found=error, fix=fix
        ) from error


def remove_abandoned(folder: AnyPath, *, older_than_s: float = 86_400.0) -> int:
    """Removes temporary files in `folder` that a killed process left behind; returns how many.

    Files younger than `older_than_s` may belong to a process at work and stay.

    Raises:
        StoreError: removing is not possible or not allowed there.
    """
    removed = 0
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        with suppress(FileNotFoundError), removing(path):
            if time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()
                removed += 1
    return removed


class FileDigests:
    """Digests of files, remembered by path, size, modification time and inode.

    Args:
        cache_file: a JSON file that keeps them between processes, once its folder exists: who only looks
            makes none. Two processes that write it at once may lose each other's new entries, and where it
            cannot be written none are kept, which costs a second reading and nothing else.
    """

    def __init__(self, cache_file: str | Path) -> None:
        self._cache_file = Path(cache_file)
        self._known = self._load()

    def digest(self, path: str | Path, take: Callable[[Path], str] | None = None) -> str:
        """The sha256 of the file at `path`, or what `take` makes of it instead, such as `digest_tensors`.

        It is read again only if the file looks changed.
        """
        path = Path(path).resolve()
        name = str(path) if take is None else f"{path} {take.__name__}"
        state = _state(path)
        known = self._known.get(name)
        if known is not None and list(known[:-1]) == state:
            return str(known[-1])
        if state[0] > _WORTH_A_LINE_BYTES:
            logger.info("Reading %s once for its digest (%.1f GB).", path, state[0] / 1e9)
        started_ns = time.time_ns()
        digest = digest_file(path) if take is None else take(path)
        if _state(path) == state and started_ns - state[1] > _SETTLED_NS:
            self._known = {**self._load(), **self._known, name: [*state, digest]}
            self._save()
        return digest

    def _save(self) -> None:
        try:
            if self._cache_file.parent.is_dir():
                write_json(self._cache_file, self._known)
        except (OSError, StoreError) as error:  # without it, the next process reads the files again
            logger.debug("Digests are not kept for other processes: %s", error)

    def _load(self) -> Mapping[str, Sequence[Any]]:
        try:
            return json.loads(self._cache_file.read_bytes())
        except (OSError, ValueError):  # a cache: worth nothing unless it is read, and re-made from the files
            return {}


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

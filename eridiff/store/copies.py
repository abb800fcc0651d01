"""Local copies of files that lie elsewhere: bounded, whole or absent, shared by all processes of a machine.

A copy that is being read is locked by the kernel (flock): locks of a killed process vanish with it. Only what
nobody reads is evicted, the least recently used first. fsspec's own caches of whole files have no bound in
bytes, and ask nobody who reads.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from eridiff.errors import StoreError
from eridiff.store.faults import writing

_SUFFIX = ".tmp"
_RESERVED = "r"
"""A file being fetched is `.<name>.r<bytes>.tmp`: its name reserves room before the first byte is there."""
_ROOM_LOCK = ".room"


@dataclass(frozen=True)
class _Kept:
    """A file in the folder: a copy, or one that is being made."""

    path: Path
    nbytes: int
    used_ns: int

    @property
    def rank(self) -> tuple[bool, int]:
        """What goes first: what killed processes left, then the least recently used."""
        return self.path.suffix != _SUFFIX, self.used_ns


@dataclass(frozen=True)
class Copies:
    """Copies by name; a name always means the same bytes.

    Attributes:
        folder: on a disk of this machine; made when the first copy is.
        max_bytes: what copies and files being fetched may take together.
    """

    folder: Path
    max_bytes: int

    @contextmanager
    def opened(
        self, name: str, size: Callable[[], int], fetch: Callable[[Path], object]
    ) -> Iterator[BinaryIO]:
        """A copy, open and locked against eviction: fetched first where there is none.

        Of processes that want the same copy at once, one fetches it and the others wait.

        Args:
            name: of the copy.
            size: gives its number of bytes; only asked where it is to be fetched.
            fetch: writes it to a path.

        Raises:
            StoreError: the bound is too small for what is being read.
        """
        while (file := self._held(name)) is None:
            self._fetch(name, size(), fetch)
        with file:
            yield file

    def mapped(self, name: str, size: Callable[[], int], fetch: Callable[[Path], object]) -> memoryview:
        """The bytes of a copy, memory-mapped; it is locked against eviction as long as a view of them lives.

        Raises:
            StoreError: as `opened`.
        """
        with self.opened(name, size, fetch) as file:
            # The map keeps a duplicate of the descriptor, and so the lock, until its last view is gone.
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    @contextmanager
    def made(self, name: str) -> Iterator[Path]:
        """A path to write a new file to; when the block ends well, the file is the copy of that name.

        It counts against the bound once it is written, and is dropped where there is no room for it.
        """
        temporary = self.folder / f".{name}.{uuid.uuid4().hex[:12]}{_SUFFIX}"
        with _opened(temporary) as file, _removed_at_last(temporary):
            fcntl.flock(file, fcntl.LOCK_EX)
            with writing(temporary):
                yield temporary
            if temporary.stat().st_size <= self.max_bytes and self._make_room() <= 0:
                self._keep(temporary, name)

    def forget(self, name: str) -> bool:
        """Removes a copy, for instance a damaged one; says whether there was one."""
        try:
            (self.folder / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def nbytes(self) -> int:
        """What is taken of the bound."""
        return sum(kept.nbytes for kept in self._kept())

    def _held(self, name: str) -> BinaryIO | None:
        """A copy, open and locked; `None` where there is none."""
        path = self.folder / name
        while True:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                return None
            fcntl.flock(file, fcntl.LOCK_SH)
            if _is_at(file, path):
                os.utime(file.fileno())
                return file
            file.close()  # evicted between opening and locking

    def _fetch(self, name: str, size: int, fetch: Callable[[Path], object]) -> None:
        temporary = self.folder / f".{name}.{_RESERVED}{size}{_SUFFIX}"
        with _opened(temporary) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # waits for whoever fetches it already
            if not _is_at(file, temporary):
                return
            with _removed_at_last(temporary):
                if (self.folder / name).exists():
                    return
                if (excess := self._make_room()) > 0:
                    raise self._too_small(excess)
                fetch(temporary)
                self._keep(temporary, name)

    def _keep(self, temporary: Path, name: str) -> None:
        """Gives a finished file its name: not while somebody counts, who might then see neither name."""
        with self._room():
            temporary.replace(self.folder / name)

    def _make_room(self) -> int:
        """Evicts copies until what is kept or reserved is within the bound; returns the bytes above it."""
        with self._room():
            files = sorted(self._kept(), key=lambda kept: kept.rank)
            excess = sum(kept.nbytes for kept in files) - self.max_bytes
            for kept in files:
                if excess > 0 and _evicted(kept.path):
                    excess -= kept.nbytes
        return excess

    @contextmanager
    def _room(self) -> Iterator[None]:
        with _opened(self.folder / _ROOM_LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _too_small(self, excess: int) -> StoreError:
        return StoreError(
            "The cache of files from elsewhere is too small for what is read at once.",
            where=self.folder,
            found=f"{self.max_bytes / 1e9:.3g} GB (storage.cache_gb)",
            wanted=f"at least {(self.max_bytes + excess) / 1e9:.3g} GB",
            fix="raise storage.cache_gb",
        )

    def _kept(self) -> Iterator[_Kept]:
        if not self.folder.is_dir():
            return
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name == _ROOM_LOCK:
                    continue
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    nbytes = max(status.st_size, _reserved_bytes(entry.name))
                    yield _Kept(Path(entry.path), nbytes, status.st_mtime_ns)


def _reserved_bytes(name: str) -> int:
    """What the name of a file being fetched reserves; 0 for any other."""
    field = name.removesuffix(_SUFFIX).rpartition(".")[2]
    reserves = name.endswith(_SUFFIX) and field.startswith(_RESERVED)
    return int(field.removeprefix(_RESERVED)) if reserves else 0


def _opened(path: Path) -> BinaryIO:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")


@contextmanager
def _removed_at_last(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is still what lies at its path."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file.fileno()), there)


def _evicted(path: Path) -> bool:
    """Removes a file unless somebody holds it; says whether it is gone."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return True
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if _is_at(file, path):
            path.unlink()
        return True

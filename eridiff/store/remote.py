"""Paths below a URL: files elsewhere, in any storage that fsspec reaches, by pathlib's names.

Listings are never cached, since other machines write there too. Small files that change are read and written
whole; large ones never change under their name, and are read through local copies.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from eridiff.errors import StoreError, Unreachable
from eridiff.store.copies import Copies
from eridiff.store.faults import writing

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_WHOLE_PUTS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
"""Protocols whose files appear once they are whole; elsewhere a file is put aside and moved."""


@dataclass(frozen=True)
class Status:
    """Size and time of a file elsewhere, by the names of `os.stat_result`."""

    st_size: int
    st_mtime: float

    @property
    def st_mtime_ns(self) -> int:
        """Time of the last change, ns; no storage is more exact than its seconds."""
        return int(self.st_mtime * 1e9)


@dataclass(frozen=True)
class RemotePath:
    """A file or folder elsewhere.

    Attributes:
        storage: fsspec's file system.
        path: in it, without protocol.
        copies: local copies of files that never change under their name.
    """

    storage: AbstractFileSystem
    path: PurePosixPath
    copies: Copies

    def __str__(self) -> str:
        """The URL."""
        return self.storage.unstrip_protocol(self._key)

    def __truediv__(self, name: str) -> RemotePath:
        return self._at(self.path / name)

    def __lt__(self, other: RemotePath) -> bool:
        return self.path < other.path

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.path.stem

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return self.path.suffix

    @property
    def parent(self) -> RemotePath:
        """The folder that it lies in."""
        return self._at(self.path.parent)

    def with_name(self, name: str) -> RemotePath:
        """Another file beside it."""
        return self._at(self.path.with_name(name))

    def with_suffix(self, suffix: str) -> RemotePath:
        """The same name with another ending."""
        return self._at(self.path.with_suffix(suffix))

    def exists(self) -> bool:
        """Whether there is a file, or a folder with files in it."""
        with self._asking():
            return self.storage.exists(self._key)

    def is_dir(self) -> bool:
        """Whether files lie below it."""
        with self._asking():
            return self.storage.isdir(self._key)

    def stat(self) -> Status:
        """Size and time of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._asking():
            return Status(self._size(), self.storage.modified(self._key).timestamp())

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in this folder, by name; nothing of what is being written, nor of folders."""
        with self._asking():
            try:
                entries = self.storage.ls(self._key, detail=True)
            except FileNotFoundError:
                return {}
        files = {PurePosixPath(entry["name"]): entry for entry in entries if entry["type"] == "file"}
        return {
            path.name: entry["size"]
            for path, entry in files.items()
            if path.parent == self.path and not path.name.startswith(".")
        }

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies in this folder; nothing where there is none."""
        return self.glob("*")

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Files and folders below this one that match a pattern."""
        with self._asking():
            found = self.storage.glob(f"{self._key}/{pattern}")
        return (self._at(PurePosixPath(path)) for path in sorted(map(str, found)))

    def files(self) -> list[RemotePath]:
        """All files below this folder, at any depth, sorted."""
        with self._asking():
            return [self._at(PurePosixPath(path)) for path in sorted(self.storage.find(self._key))]

    def read_bytes(self) -> bytes:
        """All of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._asking():
            data = self.storage.cat_file(self._key)
        assert isinstance(data, bytes)
        return data

    def write_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Writes a file, which is whole or as it was before for whoever reads it."""
        with self._writing(), self._put_aside() as key:
            self.storage.pipe_file(key, bytes(data))

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes a file.

        Raises:
            FileNotFoundError: there is none, as far as the storage tells.
        """
        with self._asking():
            try:
                self.storage.rm_file(self._key)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def remove_tree(self) -> None:
        """Removes a folder with all that lies below it."""
        with self._asking():
            self.storage.rm(self._key, recursive=True)

    def replace(self, target: RemotePath) -> None:
        """Moves a file; where there is none, FileNotFoundError."""
        with self._asking():
            self.storage.mv(self._key, str(target.path))

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A local path to write this file to; put here, whole, when the block ends, and kept as a copy."""
        with self.copies.made(self._copy) as temporary:
            yield temporary
            with self._writing(), self._put_aside() as key:
                self.storage.put_file(str(temporary), key)

    def opened(self) -> AbstractContextManager[BinaryIO]:
        """A local copy, open, and not evicted before it is closed.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return self.copies.opened(self._copy, self._size, self._fetch)

    def mapped(self) -> memoryview:
        """The bytes of a local copy, memory-mapped, and not evicted while a view of them lives.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return self.copies.mapped(self._copy, self._size, self._fetch)

    def forget(self) -> bool:
        """Removes the local copy; says whether there was one."""
        return self.copies.forget(self._copy)

    @property
    def _key(self) -> str:
        return str(self.path)

    @property
    def _copy(self) -> str:
        """The name of the local copy, of any URL one of its own."""
        return f"{hashlib.sha256(str(self).encode()).hexdigest()[:32]}{self.suffix}"

    def _at(self, path: PurePosixPath) -> RemotePath:
        return RemotePath(self.storage, path, self.copies)

    def _size(self) -> int:
        with self._asking():
            return int(self.storage.info(self._key)["size"])

    def _fetch(self, copy: Path) -> None:
        size = self._size()
        with self._asking(), writing(copy, size):
            self.storage.get_file(self._key, str(copy))
        if copy.stat().st_size != size:
            raise Unreachable(
                "A file came only in part.", where=self, found=copy.stat().st_size, wanted=f"{size} bytes"
            )

    @contextmanager
    def _put_aside(self) -> Iterator[str]:
        """The key to write to, which becomes this file's when the block ends."""
        if not _WHOLE_PUTS.isdisjoint(_protocols(self.storage)):
            yield self._key
            return
        aside = self.with_name(f".{self.name}.{uuid.uuid4().hex[:12]}.tmp")
        self.storage.makedirs(str(self.path.parent), exist_ok=True)
        try:
            yield str(aside.path)
            self.storage.mv(str(aside.path), self._key)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._asking():
                yield
        except FileNotFoundError as error:
            raise StoreError(
                "There is no such bucket or container.",
                where=self,
                found=error,
                fix="make it, or mend storage.data",
            ) from error

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turns what a storage's libraries raise into errors with a remedy; an absent file is none."""
        try:
            yield
        except (FileNotFoundError, StoreError):
            raise
        except PermissionError as error:
            raise StoreError(
                "Storage elsewhere refuses.",
                where=self,
                found=error,
                fix="check the credentials in the environment and what they may do there",
            ) from error
        except Exception as error:  # each storage has exceptions of its own, of libraries not imported here
            raise Unreachable(
                "Storage elsewhere cannot be reached.",
                where=self,
                found=f"{type(error).__name__}: {error}",
                fix="check network, endpoint and credentials, then run the same command again: it goes on",
            ) from error


def read_each(paths: Sequence[RemotePath]) -> Iterator[tuple[RemotePath, bytes | FileNotFoundError]]:
    """The bytes of small files, asked for side by side; or that there is no such file.

    Raises:
        Unreachable: the storage does not answer.
    """
    if not paths:
        return
    by_key = {path._key: path for path in paths}
    with paths[0]._asking():
        found = paths[0].storage.cat(list(by_key), on_error="return")
    assert isinstance(found, dict)
    for key, path in by_key.items():
        content = found.get(key, FileNotFoundError(key))
        with path._asking():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
        yield path, content


def _protocols(storage: AbstractFileSystem) -> tuple[str, ...]:
    return (storage.protocol,) if isinstance(storage.protocol, str) else tuple(storage.protocol)

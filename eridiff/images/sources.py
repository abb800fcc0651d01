"""Where the user's bytes lie: a file, or a stretch of a tar file. They are only ever read."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from eridiff.errors import DataError

READ_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class Source:
    """An image or a caption as the user keeps it.

    Attributes:
        name: the path as the user knows it; a member of a tar is `path.tar/member`.
        path: absolute path of the file to open.
        offset: where the bytes start in that file.
        num_bytes: how many there are.
        file_bytes: size of the whole file.
        mtime_ns: modification time of the file, ns.
        inode: of the file.
    """

    name: str
    path: str
    offset: int
    num_bytes: int
    file_bytes: int
    mtime_ns: int
    inode: int

    @property
    def state(self) -> tuple[int, int, int, int]:
        """What changes when the file is edited; equal states are taken for equal bytes."""
        return self.num_bytes, self.file_bytes, self.mtime_ns, self.inode


def whole_file(name: str, path: str, status: os.stat_result) -> Source:
    """The source that is all of a file."""
    return Source(name, path, 0, status.st_size, status.st_size, status.st_mtime_ns, status.st_ino)


def read_source(source: Source) -> bytes:
    """The bytes of a source.

    Raises:
        OSError: the file cannot be read.
        DataError: the file is not as it was when it was found.
    """
    descriptor = os.open(source.path, READ_FLAGS)
    try:
        data = _read(descriptor, source)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    found = (status.st_size, status.st_mtime_ns, status.st_ino)
    if len(data) != source.num_bytes or found != (source.file_bytes, source.mtime_ns, source.inode):
        raise DataError(
            "A file changed while it was being read.",
            where=source.name,
            fix="wait until nothing writes to the dataset, then run the same command again",
        )
    return data


def _read(descriptor: int, source: Source) -> bytes:
    """Up to `num_bytes` bytes: one call of the system mostly, since files of images are small."""
    if source.offset:
        os.lseek(descriptor, source.offset, os.SEEK_SET)
    data = os.read(descriptor, source.num_bytes)
    while 0 < len(data) < source.num_bytes:
        more = os.read(descriptor, source.num_bytes - len(data))
        if not more:
            break
        data += more
    return data


def escaped(name: str) -> str:
    r"""A file name as text that can be stored: bytes that are not UTF-8 are written as `\\udcXX`."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def why_unreadable(status: os.stat_result) -> str | None:
    """The reason not to open something that is no plain file (a pipe would wait for ever), or None."""
    return None if stat.S_ISREG(status.st_mode) else "not a regular file"

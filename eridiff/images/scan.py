"""What reading the user's files found out, remembered by their state, so that each is read once."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from eridiff.images.captions import UnusableCaption, decode_text
from eridiff.images.formats import UnusableImage
from eridiff.images.headers import measure
from eridiff.images.sources import Source, escaped, read_source

SCAN_VERSION = "1"
"""Raised when equal bytes may be judged otherwise: older scans are then not believed."""

_VERSION_KEY = "eridiff.scan"

_FINE_CLOCK_NS, _COARSE_CLOCK_NS, _SECOND_NS = 100_000_000, 2_000_000_000, 1_000_000_000

_BATCH = 32
"""Files a task: the threads' own cost is spread, and the bar still moves."""


@dataclass(frozen=True, slots=True)
class Scanned:
    """What the bytes of one source are.

    Attributes:
        content: sha256 of the bytes, 64 hexadecimal digits.
        extension: the image's format, e.g. `jpg`; None for a caption or a bad image.
        width: px, upright; 0 for a caption or a bad image.
        height: px, upright; 0 for a caption or a bad image.
        text: a caption's text; None for an image or a bad caption.
        problem: why it cannot be used, or None.
        lasting: whether the file, being unchanged, need not be read again.
    """

    content: str
    extension: str | None = None
    width: int = 0
    height: int = 0
    text: str | None = None
    problem: str | None = None
    lasting: bool = True


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of a remembered scan: the place and state of a source, and what it was."""

    path: str
    offset: int
    num_bytes: int
    file_bytes: int
    mtime_ns: int
    inode: int
    content: str
    extension: str | None
    width: int
    height: int
    text: str | None
    problem: str | None


_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
        ("file_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("inode", pa.uint64()),
        ("content", pa.string()),
        ("extension", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("text", pa.string()),
        ("problem", pa.string()),
    ],
    metadata={_VERSION_KEY: SCAN_VERSION},
)


class ScanCache:
    """What is known about sources, looked up by place and believed while their state is the same.

    Args:
        files: Parquet files that `save` wrote, the most trusted last, as paths or as open files; absent or
            outdated ones are skipped.
    """

    def __init__(self, files: Iterable[Path | pa.NativeFile] = ()) -> None:
        self._rows = {(row.path, row.offset): row for file in files for row in _load(file)}
        self._fleeting: dict[tuple[str, int], Scanned] = {}

    def get(self, source: Source) -> Scanned | None:
        """What is known about a source in its present state."""
        row = self._rows.get(_place(source))
        if row is None or (row.num_bytes, row.file_bytes, row.mtime_ns, row.inode) != source.state:
            return None
        return Scanned(row.content, row.extension, row.width, row.height, row.text, row.problem)

    def __getitem__(self, source: Source) -> Scanned:
        """What is known about a source that has been scanned.

        Raises:
            KeyError: it has not.
        """
        found = self._fleeting.get(_place(source)) or self.get(source)
        if found is None:
            raise KeyError(source.name)
        return found

    def put(self, source: Source, scanned: Scanned) -> None:
        """Notes what a source is; `save` keeps it, if it will hold while the source's state does."""
        path, offset = _place(source)
        if not scanned.lasting:
            self._fleeting[path, offset] = scanned
            self._rows.pop((path, offset), None)
            return
        self._rows[path, offset] = _Row(
            path,
            offset,
            *source.state,
            scanned.content,
            scanned.extension,
            scanned.width,
            scanned.height,
            scanned.text,
            scanned.problem,
        )

    def save(self, file: Path | BinaryIO, sources: Iterable[Source]) -> None:
        """Writes what is known about `sources` to a Parquet file, sorted by place."""
        places = {_place(source) for source in sources}
        rows = [self._rows[place] for place in sorted(places & self._rows.keys())]
        columns = {name: [getattr(row, name) for row in rows] for name in _SCHEMA.names}
        pq.write_table(pa.table(columns, schema=_SCHEMA), file, compression="zstd")


def examine_image(source: Source) -> Scanned:
    """Reads an image once: its digest, format and size, or why it cannot be used."""
    return _examine(source, _image_in)


def examine_caption(source: Source) -> Scanned:
    """Reads a caption file once: its digest and text, or why it cannot be used."""
    return _examine(source, _caption_in)


Examine = Callable[[Source], Scanned]


def scan(
    work: Sequence[tuple[Source, Examine]], *, num_threads: int | None = None
) -> Generator[tuple[Source, Scanned]]:
    """Examines sources in threads, in order; closing the iterator drops what has not been started.

    Reading and hashing, which is nearly all of the work, run outside Python's lock.
    """
    batches = [work[start : start + _BATCH] for start in range(0, len(work), _BATCH)]
    with ThreadPoolExecutor(num_threads or min(8, os.cpu_count() or 1), "scan") as threads:
        for batch in threads.map(_examine_all, batches):
            yield from batch


def _examine_all(batch: Sequence[tuple[Source, Examine]]) -> list[tuple[Source, Scanned]]:
    return [(source, examine(source)) for source, examine in batch]


def _examine(source: Source, judge: Callable[[bytes, str], Scanned]) -> Scanned:
    started_ns = time.time_ns()
    try:
        data = read_source(source)
    except OSError as error:
        return Scanned(content="", problem=f"cannot be read: {error.strerror or error}", lasting=False)
    scanned = judge(data, hashlib.sha256(data).hexdigest())
    return scanned if _is_settled(source, started_ns) else replace(scanned, lasting=False)


def _is_settled(source: Source, now_ns: int) -> bool:
    """Whether a further edit would show in the modification time.

    File systems stamp files with a clock that ticks every few ms, or every one or two seconds: an edit within
    the tick of the last one leaves no trace. Whole seconds betray the coarse kind.
    """
    tick_ns = _FINE_CLOCK_NS if source.mtime_ns % _SECOND_NS else _COARSE_CLOCK_NS
    return now_ns - source.mtime_ns > tick_ns


def _image_in(data: bytes, content: str) -> Scanned:
    try:
        measured = measure(data)
    except UnusableImage as error:
        return Scanned(content, problem=error.reason)
    return Scanned(content, measured.extension, measured.width, measured.height)


def _caption_in(data: bytes, content: str) -> Scanned:
    try:
        return Scanned(content, text=decode_text(data))
    except UnusableCaption as error:
        return Scanned(content, problem=error.reason)


def _place(source: Source) -> tuple[str, int]:
    return escaped(source.path), source.offset


def _load(file: Path | pa.NativeFile) -> Iterator[_Row]:
    try:
        table = pq.read_table(file, memory_map=True)
    except (FileNotFoundError, pa.ArrowInvalid):  # a cache: once damaged, re-made from the files
        return
    if not table.schema.equals(_SCHEMA, check_metadata=True):
        return
    for values in zip(*(column.to_pylist() for column in table.columns), strict=True):
        yield _Row(*values)

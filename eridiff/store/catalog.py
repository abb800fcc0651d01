"""The indexes of all parts of a store, merged: where each item lies.

A part's index is a Parquet file named by its own digest, so an index that was damaged or torn is known by its
name. It holds two checks of each tensor's bytes: a sha256, and a CRC-32, which finds damage in half the time
(parts of format 1 have none). Indexes of finished parts are also kept merged in one Arrow file,
likewise named by its digest, which makes a store of thousands of parts open at once. The merged file is only
a cache: it can be deleted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from eridiff.store.files import digest_bytes, write_atomic
from eridiff.store.paths import AnyPath, contents
from eridiff.store.tensorfile import Extent, Statistics

logger = logging.getLogger(__name__)

DATA_SUFFIX, INDEX_SUFFIX = ".safetensors", ".parquet"
FORMAT_VERSION = 2
_ID_LENGTH = 32
_INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("tensor", pa.string()),
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("digest", pa.string()),
        ("crc32", pa.uint32()),
        ("finite", pa.bool_()),
        ("minimum", pa.float64()),
        ("maximum", pa.float64()),
        ("mean", pa.float64()),
    ]
)
_PLACE_COLUMNS = ["key", "tensor", "dtype", "shape", "offset", "nbytes", "digest", "crc32"]
_MERGED_SCHEMA = pa.schema([("part", pa.string()), *(_INDEX_SCHEMA.field(name) for name in _PLACE_COLUMNS)])

NO_ROWS: pa.Table = _MERGED_SCHEMA.empty_table()
"""A merged table without items."""


@dataclass(frozen=True)
class IndexRow:
    """One tensor of one item in a part."""

    key: str
    tensor: str
    extent: Extent
    digest: str
    crc32: int
    statistics: Statistics


@dataclass(frozen=True)
class Place:
    """Where one tensor of an item lies, the digest of its bytes, and their CRC-32 where the part has it."""

    tensor: str
    extent: Extent
    digest: str
    crc32: int | None


class Span(NamedTuple):
    """Rows of a catalog that are one item in one part."""

    part: str
    start: int
    stop: int


@dataclass(frozen=True)
class Catalog:
    """Every item of the parts it was built from.

    Attributes:
        parts: the parts' ids.
        table: a row a tensor, rows of an item beside each other.
        spans: for each key, its copies; nearly always one.
    """

    parts: frozenset[str]
    table: pa.Table
    spans: Mapping[str, tuple[Span, ...]] = field(repr=False)

    def places(self, span: Span) -> list[Place]:
        """Where the tensors of an item lie."""
        return [
            Place(
                row["tensor"],
                Extent(row["dtype"], tuple(row["shape"]), row["offset"], row["nbytes"]),
                row["digest"],
                row["crc32"],
            )
            for row in self.table.slice(span.start, span.stop - span.start).to_pylist()
        ]


def part_ends(table: pa.Table) -> dict[str, int]:
    """The size in bytes that the data file of each part in a merged table must have."""
    ends = pa.table(
        {"part": table["part"], "end": pc.call_function("add", [table["offset"], table["nbytes"]])}
    )
    largest = ends.group_by("part").aggregate([("end", "max")])
    return dict(zip(largest["part"].to_pylist(), largest["end_max"].to_pylist(), strict=True))


def build_catalog(parts: frozenset[str], table: pa.Table) -> Catalog:
    """A catalog of a merged table's rows."""
    table = table.combine_chunks()
    spans: dict[str, tuple[Span, ...]] = {}
    for key, span in _runs(table["key"].to_pylist(), table["part"].to_pylist()):
        spans[key] = (*spans[key], span) if key in spans else (span,)
    return Catalog(parts, table, spans)


def _runs(keys: Sequence[str], parts: Sequence[str]) -> Iterator[tuple[str, Span]]:
    start = 0
    for row in range(1, len(keys) + 1):
        if row == len(keys) or keys[row] != keys[start] or parts[row] != parts[start]:
            yield keys[start], Span(parts[start], start, row)
            start = row


def index_bytes(rows: Sequence[IndexRow], metadata: Mapping[str, object]) -> bytes:
    """The Parquet index of a part; `metadata` is kept as JSON in the file's schema."""
    columns = {
        "key": [row.key for row in rows],
        "tensor": [row.tensor for row in rows],
        "dtype": [row.extent.dtype for row in rows],
        "shape": [list(row.extent.shape) for row in rows],
        "offset": [row.extent.offset for row in rows],
        "nbytes": [row.extent.nbytes for row in rows],
        "digest": [row.digest for row in rows],
        "crc32": [row.crc32 for row in rows],
        "finite": [row.statistics.finite for row in rows],
        "minimum": [row.statistics.minimum for row in rows],
        "maximum": [row.statistics.maximum for row in rows],
        "mean": [row.statistics.mean for row in rows],
    }
    note = json.dumps({"format": FORMAT_VERSION, **metadata}, sort_keys=True).encode()
    schema = _INDEX_SCHEMA.with_metadata({"eridiff": note})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def part_id(index: bytes) -> str:
    """The name of the part that has this index."""
    return digest_bytes(index)[:_ID_LENGTH]


def read_index(part: str, data: bytes) -> pa.Table:
    """The rows of a part's index, in the columns of a merged table.

    Raises:
        ValueError: the bytes are not those that the part's name promises.
    """
    if part_id(data) != part:
        raise ValueError(f"digest {part_id(data)} is not the one in the name")
    table = pq.ParquetFile(pa.BufferReader(data)).read(columns=_PLACE_COLUMNS, use_threads=False)
    if "crc32" not in table.column_names:  # format 1
        table = table.append_column("crc32", pa.nulls(table.num_rows, pa.uint32()))
    names = pa.repeat(pa.scalar(part, pa.string()), table.num_rows)
    return table.add_column(0, "part", names).replace_schema_metadata(None)


def read_indexes(paths: Sequence[AnyPath]) -> tuple[pa.Table, dict[str, str]]:
    """Merged rows of the parts whose index is whole, and the reasons of those that are not, by part."""
    tables = [NO_ROWS]
    damaged: dict[str, str] = {}
    for path, found in contents(paths):
        try:
            if isinstance(found, OSError):
                raise found
            tables.append(read_index(path.stem, found))
        except FileNotFoundError:  # set aside by another process meanwhile
            continue
        except (ValueError, OSError, pa.ArrowException) as error:
            logger.warning("The index %s is damaged (%s): its items will be made again.", path, error)
            damaged[path.stem] = str(error)
    return pa.concat_tables(tables), damaged


def read_merged(folder: AnyPath) -> pa.Table:
    """The newest whole merged table in `folder`; an empty one where there is none."""
    for path in _merged_files(folder):
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # replaced by a newer one meanwhile
            continue
        if digest_bytes(data)[:_ID_LENGTH] == path.stem.removeprefix("merged-"):
            table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
            if table.schema.equals(_MERGED_SCHEMA):
                return table
    return NO_ROWS


def write_merged(folder: AnyPath, table: pa.Table) -> None:
    """Keeps a merged table in `folder` and removes the older ones."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _MERGED_SCHEMA) as writer:
        writer.write_table(table)
    data = sink.getvalue()
    older = _merged_files(folder)
    path = folder / f"merged-{digest_bytes(memoryview(data))[:_ID_LENGTH]}.arrow"
    write_atomic(path, memoryview(data))
    for old in older:
        if old != path:
            with suppress(FileNotFoundError):
                old.unlink()


def _merged_files(folder: AnyPath) -> list[AnyPath]:
    def changed_ns(path: AnyPath) -> int:
        try:
            return path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    return sorted(folder.glob("merged-*.arrow"), key=changed_ns, reverse=True)

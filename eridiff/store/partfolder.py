"""The folder of a store's parts: which are whole, what their indexes say, and how a part is added."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from eridiff.errors import StoreError
from eridiff.store.catalog import (
    DATA_SUFFIX,
    INDEX_SUFFIX,
    NO_ROWS,
    Catalog,
    IndexRow,
    build_catalog,
    index_bytes,
    part_ends,
    part_id,
    read_indexes,
    read_merged,
    write_merged,
)
from eridiff.store.files import atomic_path, remove_abandoned, write_atomic
from eridiff.store.paths import AnyPath, move, sizes_in
from eridiff.store.tensorfile import Extent, StoredTensor, write_tensors

_MERGE_AT_LEAST = 64
"""New parts that are worth a merged index; later an eighth of those merged already."""
_LOOK_EVERY = 16
"""Parts a process writes before it looks whether a merged index is due."""


class PartFolder:
    """The parts below a store's folder.

    Args:
        folder: the store's folder; parts lie in `parts/` below it.
    """

    def __init__(self, folder: AnyPath) -> None:
        self.folder, self.parts = folder, folder / "parts"
        self._table: pa.Table | None = None
        self._ends: dict[str, int] = {}
        self._num_merged = 0
        self._unreadable: dict[str, str] = {}
        self._num_written = 0
        self._catalog = build_catalog(frozenset(), NO_ROWS)

    def data_path(self, part: str) -> AnyPath:
        """The file with a part's tensors."""
        return self.parts / f"{part}{DATA_SUFFIX}"

    def index_path(self, part: str) -> AnyPath:
        """The file with a part's index."""
        return self.parts / f"{part}{INDEX_SUFFIX}"

    def sizes(self) -> dict[str, int]:
        """Bytes of each finished file, by name."""
        return sizes_in(self.parts)

    def catalog(self) -> Catalog:
        """Every item of the parts that are whole now; only new indexes are read."""
        sizes = self.sizes()
        table = self._load_new(sizes)
        whole = frozenset(part for part in self._ends if self._fault(part, sizes) is None)
        if whole != self._catalog.parts:
            if len(whole) < len(self._ends):
                table = table.filter(
                    pa.array([part in whole for part in table["part"].to_pylist()], pa.bool_())
                )
            self._catalog = build_catalog(whole, table)
        return self._catalog

    def broken(self) -> dict[str, str]:
        """Parts whose index or data file is damaged, torn or gone, with the reason."""
        sizes = self.sizes()
        self._load_new(sizes)
        indexed = {Path(name).stem for name in sizes if name.endswith(INDEX_SUFFIX)}
        faults = {part: self._fault(part, sizes) for part in sorted(indexed)}
        return {part: fault for part, fault in faults.items() if fault is not None}

    def set_aside(self, part: str, folder: AnyPath) -> None:
        """Moves a broken part's files to `folder`, so that nobody trips over them again."""
        for path in (self.index_path(part), self.data_path(part)):
            with suppress(FileNotFoundError):
                move(path, folder)

    def write(
        self,
        tensors: Mapping[str, StoredTensor],
        layout: tuple[bytes, Mapping[str, Extent]],
        rows: Sequence[IndexRow],
        *,
        seconds: float,
    ) -> tuple[str, int]:
        """Adds a part: data first, index last; returns its id and its bytes on disk.

        Raises:
            StoreError: the disk is full; nothing of the part is left.
        """
        header, extents = layout
        index = index_bytes(rows, {"seconds": seconds, "written_ns": time.time_ns()})
        part = part_id(index)
        with atomic_path(self.data_path(part)) as temporary, temporary.open("wb") as file:
            write_tensors(file, header, extents, tensors)
        try:
            write_atomic(self.index_path(part), index)
        except StoreError:
            self.data_path(part).unlink(missing_ok=True)
            raise
        self._num_written += 1
        if self._num_written % _LOOK_EVERY == 1:
            self._merge_if_due()
        return part, len(header) + sum(extent.nbytes for extent in extents.values()) + len(index)

    def remove_abandoned(self, *, older_than_s: float) -> int:
        """Removes temporary files and data files without an index that are old enough; returns how many."""
        removed = sum(
            remove_abandoned(folder, older_than_s=older_than_s) for folder in (self.folder, self.parts)
        )
        sizes = self.sizes()
        for name in sizes:
            path = self.parts / name
            if path.suffix == DATA_SUFFIX and f"{path.stem}{INDEX_SUFFIX}" not in sizes:
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > older_than_s:
                        path.unlink()
                        removed += 1
        return removed

    def _load_new(self, sizes: Mapping[str, int]) -> pa.Table:
        if self._table is None:
            self._table = read_merged(self.folder)
            self._ends = part_ends(self._table)
            self._num_merged = len(self._ends)
        new = [
            self.parts / name
            for name in sizes
            if name.endswith(INDEX_SUFFIX)
            and (part := Path(name).stem) not in self._ends
            and part not in self._unreadable
        ]
        if new:
            table, unreadable = read_indexes(sorted(new))
            self._unreadable |= unreadable
            self._ends |= part_ends(table)
            self._table = pa.concat_tables([self._table, table]).combine_chunks()
        return self._table

    def _fault(self, part: str, sizes: Mapping[str, int]) -> str | None:
        if part in self._unreadable:
            return f"its index is damaged ({self._unreadable[part]})"
        if f"{part}{INDEX_SUFFIX}" not in sizes:
            return "its index is gone"
        size = sizes.get(f"{part}{DATA_SUFFIX}")
        if size is None:
            return "its data file is gone"
        if size != self._ends[part]:
            return f"its data file has {size} bytes, not {self._ends[part]}"
        return None

    def _merge_if_due(self) -> None:
        num_indexes = sum(name.endswith(INDEX_SUFFIX) for name in self.sizes())
        if num_indexes - self._num_merged < max(_MERGE_AT_LEAST, self._num_merged // 8):
            return
        catalog = self.catalog()
        # Another process may have merged meanwhile: then there is nothing to win.
        num_on_disk = len(part_ends(read_merged(self.folder)))
        self._num_merged = max(num_on_disk, self._num_merged)
        if len(catalog.parts) - num_on_disk >= max(_MERGE_AT_LEAST, num_on_disk // 8):
            write_merged(self.folder, catalog.table)
            self._num_merged = len(catalog.parts)

"""The tensor store: an append-only set of items in parts, found by key.

A space (a folder) holds the tensors of all items that were encoded alike:

    <root>/<space>/space.json              what the space's digest was made of
    <root>/<space>/parts/<id>.safetensors  the tensors of a part
    <root>/<space>/parts/<id>.parquet      its index, written last: with it the part exists
    <root>/<space>/merged-<digest>.arrow   many indexes in one file, a cache
    <root>/<space>/damaged/                items whose bytes no longer have their digest; broken parts
    <root>/<space>/quarantine/             items that cannot be made, with the reason

Nothing is changed in place, so any number of processes may write and read without a lock: two that make the
same item make two equal copies. A process killed at any moment leaves files that no reader looks at.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from eridiff.errors import StoreError
from eridiff.store.catalog import NO_ROWS, Catalog, IndexRow, Span, build_catalog
from eridiff.store.files import digest_bytes, write_json
from eridiff.store.marks import read_marks, write_mark
from eridiff.store.partfolder import PartFolder
from eridiff.store.paths import AnyPath, forget_copy, opened_here
from eridiff.store.reader import Reader
from eridiff.store.tensorfile import Extent, StoredTensor, file_layout, read_extents, statistics

__all__ = ["Damage", "Item", "Part", "Reader", "StoredTensor", "TensorStore"]

_NUM_THREADS = min(4, os.cpu_count() or 1)
"""Threads that digest a part's tensors: encoders make text faster than one thread digests it."""


@dataclass(frozen=True)
class Item:
    """The tensors of one key.

    Attributes:
        key: any text without `/`.
        tensors: by name; names without `/`.
    """

    key: str
    tensors: Mapping[str, StoredTensor]


@dataclass(frozen=True)
class Part:
    """A part as it was written: its id, items, bytes on disk, and the seconds it took to make them."""

    id: str
    num_items: int
    nbytes: int
    seconds: float


@dataclass(frozen=True)
class Damage:
    """Something that cannot be read; `key` is `None` for a whole part."""

    part: str
    key: str | None
    reason: str


@dataclass(frozen=True)
class _View:
    """A catalog, and for each key those copies in it that nothing is known against."""

    catalog: Catalog
    copies: Mapping[str, tuple[Span, ...]]

    def items_by_part(self) -> dict[str, list[tuple[str, Span]]]:
        """Keys and copies of each part."""
        items: dict[str, list[tuple[str, Span]]] = {}
        for key, spans in self.copies.items():
            for span in spans:
                items.setdefault(span.part, []).append((key, span))
        return items


class TensorStore:
    """The items of one space.

    Args:
        root: a folder of spaces.
        space: the digest of all that decides an encoding except the item.
    """

    def __init__(self, root: AnyPath, space: str) -> None:
        self.root, self.space, self.folder = root, space, root / space
        self._parts = PartFolder(self.folder)
        self._damaged = self.folder / "damaged"
        self._quarantine = self.folder / "quarantine"
        self._damage_seen: frozenset[tuple[str, str]] = frozenset()
        self._view = _View(build_catalog(frozenset(), NO_ROWS), {})

    def keys(self) -> frozenset[str]:
        """Keys of all items that can be read."""
        return frozenset(self._look().copies)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that are not stored or are damaged, in their order, each once."""
        copies = self._look().copies
        return [key for key in dict.fromkeys(keys) if key not in copies]

    def append(self, items: Sequence[Item], *, seconds: float = 0.0) -> Part:
        """Writes items as one part; when it returns, they are on disk for good.

        Args:
            items: at least one, with distinct keys.
            seconds: the time it took to make them, kept beside them.

        Raises:
            ValueError: no items, a key given twice, or a `/` in a name.
            StoreError: the disk is full; nothing of the part is left.
        """
        tensors = _by_name(items)
        header, extents = file_layout(tensors, {"format": "eridiff", "space": self.space})
        with ThreadPoolExecutor(_NUM_THREADS, "digests") as threads:
            rows = [*threads.map(_index_row, tensors, tensors.values(), [extents[name] for name in tensors])]
        part, nbytes = self._parts.write(tensors, (header, extents), rows, seconds=seconds)
        return Part(part, len(items), nbytes, seconds)

    def open(self, keys: Iterable[str] | None = None) -> Reader:
        """A reader of the items stored now.

        Args:
            keys: those that will be read; nothing is asked by default.

        Raises:
            StoreError: some of `keys` are missing.
        """
        view = self._look()
        missing = [key for key in dict.fromkeys(keys or ()) if key not in view.copies]
        if missing:
            raise StoreError(
                f"{len(missing)} items are missing from the store.",
                where=self.folder,
                found=f"no item {missing[0]}",
                fix="run `eridiff precompute` with this recipe",
            )
        return self._reader(view)

    def verify(self, on_progress: Callable[[int, int], None] | None = None) -> list[Damage]:
        """Reads every byte, marks what is damaged, and returns that of which no whole copy is left.

        Broken parts (index or data file damaged, torn or gone) are reported once and moved to `damaged/`.

        Args:
            on_progress: called with (parts read, parts in all).
        """
        broken = self._parts.broken()
        for part in broken:
            self._parts.set_aside(part, self._damaged)
        view = self._look()
        reader, by_part = self._reader(view), view.items_by_part()
        for number, (part, items) in enumerate(sorted(by_part.items()), start=1):
            forget_copy(self._parts.data_path(part))  # the file itself is to be read
            header_fault = _header_fault(self._parts.data_path(part), view.catalog, items)
            for key, span in items:
                if reason := header_fault or reader.fault(span):
                    self._note_damage(span, key, reason)
            if on_progress is not None:
                on_progress(number, len(by_part))
        copies = self._look().copies
        lost = [mark for mark in read_marks(self._damaged) if mark["key"] not in copies]
        return [
            *(Damage(part, None, reason) for part, reason in broken.items()),
            *(Damage(mark["part"], mark["key"], mark["reason"]) for mark in lost),
        ]

    def keys_by_part(self) -> dict[str, frozenset[str]]:
        """Keys of the items that can be read in each part."""
        items = self._look().items_by_part().items()
        return {part: frozenset(key for key, _ in held) for part, held in items}

    def part_files(self, part: str) -> tuple[AnyPath, AnyPath]:
        """A part's index, whose removal ends the part, and its data file."""
        return self._parts.index_path(part), self._parts.data_path(part)

    def describe(self, description: Mapping[str, Any]) -> None:
        """Keeps what the space's digest was made of in `space.json`; done once."""
        path = self.folder / "space.json"
        if not path.exists():
            write_json(path, dict(description))

    def quarantine(self, key: str, reason: str) -> None:
        """Notes that an item cannot be made, and why."""
        write_mark(self._quarantine, key, {"key": key, "reason": reason})

    def quarantined(self) -> dict[str, str]:
        """Reasons by key of the items that cannot be made."""
        return {mark["key"]: mark["reason"] for mark in read_marks(self._quarantine)}

    def nbytes(self) -> int:
        """Bytes on disk of all parts."""
        return sum(self._parts.sizes().values())

    def remove_abandoned(self, *, older_than_s: float = 86_400.0) -> int:
        """Removes what killed processes left behind, never a part; returns the number of files.

        Files younger than `older_than_s` may belong to a process at work and stay.
        """
        return self._parts.remove_abandoned(older_than_s=older_than_s)

    def _look(self) -> _View:
        """The items on disk now; what has not changed since the last look is not read again."""
        damage = frozenset((mark["part"], mark["key"]) for mark in read_marks(self._damaged))
        catalog = self._parts.catalog()
        if catalog is not self._view.catalog or damage != self._damage_seen:
            self._damage_seen, self._view = damage, _view(catalog, damage)
        return self._view

    def _reader(self, view: _View) -> Reader:
        return Reader(self._parts.parts, view.catalog, view.copies, self._note_damage)

    def _note_damage(self, span: Span, key: str, reason: str) -> None:
        mark = {"part": span.part, "key": key, "reason": reason}
        write_mark(self._damaged, f"{span.part}/{key}", mark)


def _view(catalog: Catalog, damage: frozenset[tuple[str, str]]) -> _View:
    if not damage:
        return _View(catalog, catalog.spans)
    copies = dict(catalog.spans)
    for key in {key for _, key in damage} & copies.keys():
        whole = tuple(span for span in copies.pop(key) if (span.part, key) not in damage)
        if whole:
            copies[key] = whole
    return _View(catalog, copies)


def _index_row(place: str, tensor: StoredTensor, extent: Extent) -> IndexRow:
    key, _, name = place.partition("/")
    return IndexRow(key, name, extent, digest_bytes(tensor.data), zlib.crc32(tensor.data), statistics(tensor))


def _by_name(items: Sequence[Item]) -> dict[str, StoredTensor]:
    if not items:
        raise ValueError("a part needs at least one item")
    tensors: dict[str, StoredTensor] = {}
    for item in items:
        for name, tensor in item.tensors.items():
            if "/" in item.key or "/" in name or not item.key or not name:
                raise ValueError(f"item {item.key!r}, tensor {name!r}: names are not empty and have no '/'")
            tensors[f"{item.key}/{name}"] = tensor
    if len({item.key for item in items}) < len(items) or not all(item.tensors for item in items):
        raise ValueError("keys of a part must be distinct, and every item must have a tensor")
    return tensors


def _header_fault(path: AnyPath, catalog: Catalog, items: Sequence[tuple[str, Span]]) -> str | None:
    """What is wrong with a data file's own header, which other programs read it by."""
    try:
        with opened_here(path) as here:
            extents = read_extents(here)
    except (OSError, ValueError) as error:
        return f"the header of part {path.stem} is damaged ({error})"
    for key, span in items:
        for place in catalog.places(span):
            if extents.get(f"{key}/{place.tensor}") != place.extent:
                return f"the header of part {path.stem} does not agree with its index"
    return None

"""Reading items: memory-mapped, and the bytes of each checked the first time.

Parts that lie elsewhere are mapped from local copies; since a copy in use is never evicted, few stay mapped.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from eridiff.errors import StoreError
from eridiff.store.catalog import DATA_SUFFIX, Catalog, Place, Span
from eridiff.store.files import digest_bytes
from eridiff.store.paths import AnyPath, forget_copy, mapped
from eridiff.store.tensorfile import StoredTensor

_COPIES_MAPPED = 1
"""Copies that stay mapped although no tensor of theirs is in use: mapping one again costs microseconds."""


class Reader:
    """The items that a store held when this was opened; safe to use from several threads.

    Args:
        folder: where the parts' data files lie.
        catalog: where the items lie in them.
        readable: for each key, its copies that nothing is known against.
        on_damage: told of a copy that turns out to be damaged, and why.
    """

    def __init__(
        self,
        folder: AnyPath,
        catalog: Catalog,
        readable: Mapping[str, tuple[Span, ...]],
        on_damage: Callable[[Span, str, str], None],
    ) -> None:
        self._folder, self._catalog, self._readable, self._on_damage = folder, catalog, readable, on_damage
        most = None if isinstance(folder, Path) else _COPIES_MAPPED
        self._map = lru_cache(most)(lambda part: mapped(folder / f"{part}{DATA_SUFFIX}"))
        self._checked: set[Span] = set()

    def __len__(self) -> int:
        """The number of items."""
        return len(self._readable)

    def __contains__(self, key: object) -> bool:
        """Whether there is such an item."""
        return key in self._readable

    def get(self, key: str) -> dict[str, StoredTensor]:
        """The tensors of an item, by name: views of the mapped file, not to be written to.

        The first time, their bytes are checked by CRC-32, or by digest in parts that have none.

        Raises:
            KeyError: there is no such item.
            StoreError: every copy is damaged; they are marked, so that `missing` names the key from now on.
        """
        reason = ""
        for span in self._readable[key]:
            places = self._catalog.places(span)
            if span not in self._checked:
                reason = self._fault(places, span.part, quick=True) or ""
                if reason:
                    self._on_damage(span, key, reason)
                    continue
                self._checked.add(span)
            return {place.tensor: self._view(span.part, place) for place in places}
        raise StoreError(
            f"A stored item is damaged: {reason}.",
            where=f"{self._folder}, item {key}",
            fix="run `eridiff precompute` again: it makes the item anew",
        )

    def fault(self, span: Span) -> str | None:
        """What is wrong with the bytes of an item, read and digested; `None` if nothing is."""
        return self._fault(self._catalog.places(span), span.part, quick=False)

    def _fault(self, places: Sequence[Place], part: str, *, quick: bool) -> str | None:
        reason = self._fault_here(places, part, quick=quick)
        if reason and forget_copy(self._folder / f"{part}{DATA_SUFFIX}"):  # only the copy may be damaged
            self._map.cache_clear()
            return self._fault_here(places, part, quick=quick)
        return reason

    def _fault_here(self, places: Sequence[Place], part: str, *, quick: bool) -> str | None:
        for place in places:
            try:
                data = self._view(part, place).data
            except (OSError, ValueError) as error:
                return f"tensor {place.tensor} of part {part} cannot be read ({error})"
            if quick and place.crc32 is not None:
                check, found, wanted = "CRC-32", f"{zlib.crc32(data):08x}", f"{place.crc32:08x}"
            else:
                check, found, wanted = "digest", digest_bytes(data), place.digest
            if found != wanted:
                return f"tensor {place.tensor} of part {part} has {check} {found[:12]}, not {wanted[:12]}"
        return None

    def _view(self, part: str, place: Place) -> StoredTensor:
        extent = place.extent
        data = self._map(part)[extent.offset : extent.offset + extent.nbytes]
        return StoredTensor(extent.dtype, extent.shape, data)

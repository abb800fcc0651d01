"""A process that appends items to a store: `python writer_process.py ROOT FIRST COUNT [CACHE]`.

ROOT is a folder, or a URL with a folder for copies.
"""

from __future__ import annotations

import sys
from pathlib import Path

from eridiff.store.parts import Item, StoredTensor, TensorStore
from eridiff.store.paths import path_at

ITEMS_A_PART = 4
ITEM_BYTES = 4096


def item(number: int) -> Item:
    """An item whose bytes follow from its number."""
    data = number.to_bytes(4, "little") * (ITEM_BYTES // 4)
    return Item(f"item-{number}", {"x": StoredTensor("U8", (ITEM_BYTES,), data)})


def main(root: str, first: str, count: str, cache: str = "") -> None:
    """Appends what is missing of the items `first` to `first + count - 1`."""
    address = root if cache else Path(root)
    store = TensorStore(path_at(address, cache=Path(cache), max_bytes=100_000, options={}), "space")
    wanted = [f"item-{number}" for number in range(int(first), int(first) + int(count))]
    missing = store.missing(wanted)
    for start in range(0, len(missing), ITEMS_A_PART):
        numbers = [int(key.partition("-")[2]) for key in missing[start : start + ITEMS_A_PART]]
        store.append([item(number) for number in numbers])


if __name__ == "__main__":
    main(*sys.argv[1:])

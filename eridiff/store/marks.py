"""Small files that say something about an item: that it is damaged, or that it cannot be made."""

from __future__ import annotations

from collections.abc import Mapping

from eridiff.store.files import digest_bytes, read_json, write_json
from eridiff.store.paths import AnyPath, sizes_in


def write_mark(folder: AnyPath, name: str, content: Mapping[str, str]) -> None:
    """Writes one mark; the same name again replaces it. `name` may hold any characters."""
    write_json(folder / f"{digest_bytes(name.encode())[:32]}.json", dict(content))


def read_marks(folder: AnyPath) -> list[dict[str, str]]:
    """The marks in a folder, by file name; none where there is no folder.

    Raises:
        StoreError: a mark is damaged.
    """
    fix = "delete this file: what it says is found out again"
    names = sorted(name for name in sizes_in(folder) if name.endswith(".json"))
    return [read_json(folder / name, fix=fix) for name in names]

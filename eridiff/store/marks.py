"""Small files that say something about an item: that it is damaged, or that it cannot be made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from eridiff.store.files import digest_bytes, read_json, write_json


def write_mark(folder: Path, name: str, content: Mapping[str, str]) -> None:
    """Writes one mark; the same name again replaces it. `name` may hold any characters."""
    write_json(folder / f"{digest_bytes(name.encode())[:32]}.json", dict(content))


def read_marks(folder: Path) -> list[dict[str, str]]:
    """The marks in a folder, by file name; none where there is no folder.

    Raises:
        StoreError: a mark is damaged.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".json"))
    except FileNotFoundError:
        return []
    fix = "delete this file: what it says is found out again"
    return [read_json(folder / name, fix=fix) for name in names if not name.startswith(".")]

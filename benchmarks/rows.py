"""Rows of figures, printed as JSON lines as they come and as a table at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


def shown(rows: Iterable[Row], columns: Sequence[str], *, as_table: bool) -> None:
    """Prints each row as it comes, with the card's name, and then perhaps all of them for people."""
    found = []
    for row in rows:
        print(json.dumps(row | {"card": card()}), flush=True)
        found.append(row)
    if as_table:
        Console(width=160).print(table(found, columns))


def table(rows: Iterable[Row], columns: Sequence[str]) -> Table:
    """The rows for people; of one that failed, the reason stands behind its first two columns."""
    made = Table(*columns, title=card())
    for row in rows:
        cells = [str(row.get(key, "")) for key in columns]
        if "failed" in row:
            cells[2] = row["failed"][:60]
        made.add_row(*cells)
    return made


def card() -> str:
    """The name of the GPU, or `cpu`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"

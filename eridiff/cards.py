"""The GPUs that a process may use, and their memory, as their driver says. No torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

_FIELDS = ("index", "uuid", "memory.total")
_QUERY = ("nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")


def visible(environment: Mapping[str, str]) -> list[str] | None:
    """Numbers or identifiers of the GPUs that `CUDA_VISIBLE_DEVICES` leaves, in their order; None is all."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    return None if named is None else [name.strip() for name in named.split(",") if name.strip()]


def card_bytes(device: str) -> tuple[int, ...]:
    """Bytes of each GPU that a recipe's device may mean.

    Args:
        device: as a recipe names it; `auto` and `cuda` mean all that are visible.

    Returns:
        Nothing where there is none, where it is not known, and for devices of another kind.
    """
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda") or shutil.which(_QUERY[0]) is None:
        return ()
    try:
        asked = subprocess.run(_QUERY, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:  # a driver that hangs is no reason to stop
        return ()
    rows = [line.split(", ") for line in asked.stdout.splitlines()]
    here = [row for row in rows if len(row) == len(_FIELDS) and row[-1].isdigit()]
    names = visible(os.environ)
    chosen = here if names is None else [row for name in names for row in _named(name, here)]
    return tuple(int(row[-1]) * 2**20 for row in (chosen[int(number) :][:1] if number else chosen))


def _named(name: str, here: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The row of a GPU that is known by its number, or by how its identifier begins."""
    return [row for row in here if name == row[0] or row[1].startswith(name)][:1]

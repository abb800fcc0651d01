"""How many blocks the denoiser of a LoRA file has."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from eridiff.errors import ModelError
from eridiff.families.checkpoints.keys import Structure
from eridiff.families.checkpoints.layout import CheckpointLayout
from eridiff.families.checkpoints.tensorfile import Header
from eridiff.lora.keys import ModuleKeys

STRUCTURE_KEY = "eridiff.structure"
_MOST = 10_000
"""Bound of the product of a structure's counts: far beyond any model, and harmless to enumerate."""


def structure_of(
    header: Header, modules: Mapping[str, ModuleKeys], layout: CheckpointLayout
) -> Structure | None:
    """Counts of blocks as a file's metadata says, else as its weights show; none where neither does.

    Raises:
        ModelError: the metadata is damaged.
    """
    written = header.metadata.get(STRUCTURE_KEY)
    if written is not None:
        counts = _parsed(header.path, written)
        return counts if _is_of(layout, counts) else None
    widths = {
        name: header.tensors[keys.down].shape[1]
        for name, keys in modules.items()
        if keys.down is not None and len(header.tensors[keys.down].shape) > 1
    }
    return layout.lora.structure(widths)


def _is_of(layout: CheckpointLayout, counts: Structure) -> bool:
    """Whether a family's blocks are counted in that way."""
    names = layout.models[layout.denoiser].names
    assert names is not None
    try:
        names.links(counts)
    except KeyError:
        return False
    return True


def _parsed(path: Path, text: str) -> dict[str, int]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    counts = fields if isinstance(fields, dict) else {}
    whole = all(type(number) is int and number >= 0 for number in counts.values())
    if not counts or not whole or math.prod(max(1, number) for number in counts.values()) > _MOST:
        raise ModelError(
            "metadata of a LoRA file is damaged", where=path, found=f"{STRUCTURE_KEY}: {text[:200]}"
        )
    return counts

"""The package's own dataset `builtin:demo-neon`: 48 captioned scenes in the second style, drawn on demand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eridiff.demo.drawing import draw
from eridiff.demo.scenes import random_scene
from eridiff.errors import DataError
from eridiff.store.files import atomic_path, remove_abandoned

NEON = "builtin:demo-neon"
NUM_IMAGES = 48

_PREFIX = "builtin:"
_FIRST_SEED = 9_000_000_000
"""Far from the scenes that the bases were trained on."""
_MTIME_S = 1_600_000_000.25
"""Modification time of all files: so long ago that a reader can trust that they no longer change."""


@dataclass(frozen=True)
class Pair:
    """One scene's place: its seed, its image and its caption file."""

    seed: int
    image: Path
    caption: Path


def folder_of(folder_path: Path, data: Path) -> Path:
    """Where the files of a recipe's dataset lie: those of a built-in one are below `data`.

    Args:
        folder_path: as the recipe has it.
        data: the recipe's `storage.data`.

    Raises:
        DataError: there is no such built-in dataset.
    """
    if not _is_builtin(folder_path):
        return folder_path
    if str(folder_path) != NEON:
        raise DataError(
            "There is no such built-in dataset.", where="datasets.folder_path", found=folder_path, wanted=NEON
        )
    return data / "demo" / "neon"


def ensure(folder_path: Path, data: Path) -> int:
    """Draws the files of a built-in dataset that are not there; leaves any other dataset alone.

    A file is whole or absent, its bytes follow from its name, and one that is there is left as it is.
    Returns how many scenes were drawn.

    Args:
        folder_path: as the recipe has it.
        data: the recipe's `storage.data`.

    Raises:
        DataError: there is no such built-in dataset.
        StoreError: the disk is full.
    """
    missing = _missing(folder_path, data)
    for pair in missing:
        _draw(pair)
    if missing:
        remove_abandoned(folder_of(folder_path, data))
    return len(missing)


def num_undrawn(folder_path: Path, data: Path) -> int:
    """How many images of a built-in dataset are not there; of any other dataset none is to be drawn.

    Raises:
        DataError: there is no such built-in dataset.
    """
    return sum(not pair.image.exists() for pair in _missing(folder_path, data))


def is_begun(folder_path: Path, data: Path) -> bool:
    """Whether a dataset is the user's, or a built-in one of which some image is drawn."""
    return num_undrawn(folder_path, data) < NUM_IMAGES


def _is_builtin(folder_path: Path) -> bool:
    return str(folder_path).startswith(_PREFIX)


def _missing(folder_path: Path, data: Path) -> list[Pair]:
    """The scenes of which a file is missing."""
    folder = folder_of(folder_path, data)
    pairs = _pairs(folder) if _is_builtin(folder_path) else ()
    return [pair for pair in pairs if not (pair.image.exists() and pair.caption.exists())]


def _pairs(folder: Path) -> Iterator[Pair]:
    for index in range(NUM_IMAGES):
        stem = folder / f"neon-{index:02d}"
        yield Pair(_FIRST_SEED + index, stem.with_suffix(".png"), stem.with_suffix(".txt"))


def _draw(pair: Pair) -> None:
    """Writes what is missing of a scene, its caption first, so that no image is ever without one."""
    scene = random_scene(pair.seed, only_seen=True, fillers=False)
    if not pair.caption.exists():
        with atomic_path(pair.caption) as temporary:
            temporary.write_text(f"{scene.caption}\n", encoding="utf-8")
            os.utime(temporary, (_MTIME_S, _MTIME_S))
    if not pair.image.exists():
        with atomic_path(pair.image) as temporary:
            draw(scene, "neon").save(temporary, "PNG")
            os.utime(temporary, (_MTIME_S, _MTIME_S))

"""Many scenes drawn on all processors into one file of pixels, for pretraining."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from eridiff.demo.drawing import SIDE_PX, Style, draw
from eridiff.demo.scenes import random_scene

_CHUNK = 500


@dataclass(frozen=True)
class Corpus:
    """Drawn scenes on disk.

    Attributes:
        folder: holds `pixels.u8` and `captions.json`.
        count: number of scenes.
    """

    folder: Path
    count: int

    def pixels(self) -> np.ndarray:
        """`[N, 128, 128, 3]` uint8, mapped, not read."""
        return np.memmap(
            self.folder / "pixels.u8", np.uint8, mode="r", shape=(self.count, SIDE_PX, SIDE_PX, 3)
        )

    def captions(self) -> list[str]:
        """A caption for each scene."""
        return json.loads((self.folder / "captions.json").read_text(encoding="utf-8"))


def draw_corpus(folder: Path, count: int, style: Style, *, first_seed: int, processes: int) -> Corpus:
    """Draw the scenes of seeds `first_seed` and the `count - 1` after it.

    Args:
        folder: made if absent; what it held is overwritten.
        count: number of scenes.
        style: `plain` or `neon`.
        first_seed: each scene has a seed of its own.
        processes: how many draw at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [
        range(start, min(start + _CHUNK, first_seed + count))
        for start in range(first_seed, first_seed + count, _CHUNK)
    ]
    captions: list[str] = []
    with (
        (folder / "pixels.u8").open("wb") as file,
        ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
    ):
        for pixels, told in pool.map(_draw_chunk, chunks, [style] * len(chunks)):
            file.write(pixels)
            captions += told
    (folder / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
    return Corpus(folder, count)


def _draw_chunk(seeds: Sequence[int], style: Style) -> tuple[bytes, list[str]]:
    scenes = [random_scene(seed) for seed in seeds]
    return b"".join(draw(scene, style).tobytes() for scene in scenes), [scene.caption for scene in scenes]

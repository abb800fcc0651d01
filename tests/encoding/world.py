"""A tiny random base of each family, some images in a shard, and a recipe for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eridiff.encoding.spaces import base_of
from eridiff.families.base import ModelFamily
from eridiff.recipe import Recipe
from eridiff.store.snapshots import Snapshot

SIZES = ((128, 96), (96, 128), (128, 128), (200, 150), (128, 128))


@dataclass(frozen=True)
class World:
    """A recipe whose images were ingested."""

    recipe: Recipe
    snapshot: Snapshot
    images: Path
    family: ModelFamily

    def vae(self) -> Any:
        """The family's VAE."""
        return self.family.load_vae(base_of(self.recipe), device=torch.device("cpu"), dtype=torch.float32)

    def text_encoders(self, dtype: torch.dtype) -> Any:
        """The family's text encoders."""
        return self.family.load_text_encoders(base_of(self.recipe), device=torch.device("cpu"), dtype=dtype)


def recipe_for(root: Path, family: str, **changes: Any) -> Recipe:
    """A recipe whose base, images and artifacts lie below `root`."""
    sections = {
        "name": "test",
        "model": {"family": family, "base": str(root / "base")},
        "datasets": [{"folder_path": str(root / "folder"), "resolution": 128, "flip_x": True}],
        "ingest": {"bucket_step": 32},
        "sample": {"prompts": ["a sample prompt"], "neg": "a negative prompt"},
        "storage": {"data": str(root / "data"), "runs": str(root / "runs")},
        "device": "cpu",
    }
    return Recipe.model_validate(sections | changes)


def draw_images(folder: Path, sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
    """Noisy images with captions, two of them alike."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"caption {number // 2}")

"""A tiny project on disk: a random base, some images, and recipes that keep their results apart."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from safetensors.numpy import load_file

from eridiff.demo.architecture import save_random_base

SIDE_PX = 64
RECIPE = """\
name: tiny
model: {{family: sdxl, base: {base}}}
datasets: [{{folder_path: {images}, resolution: {side}}}]
ingest: {{holdout: 0.3}}
precompute: {{latent_batch_size: 1, text_batch_size: 1, part_samples: 1, text_dtype: fp32}}
network: {{linear: 4, linear_alpha: 4}}
train: {{steps: 12, batch_size: 2, lr: 5e-3, dtype: fp32, gradient_checkpointing: false}}
save: {{save_every: 4, dtype: fp32}}
sample: {{prompts: ["a circle"], width: {side}, height: {side}, sample_steps: 1, seeds: [1]}}
validation: {{images: 2, timesteps: 2}}
logging: {{log_every: 1}}
publish: {{to: {root}/served}}
storage: {{data: {root}/data, runs: {root}/runs, registry: {root}/registry}}
device: cpu
"""


@dataclass(frozen=True)
class Project:
    """A recipe with storage of its own below `root`."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def images(self) -> Path:
        return self.root / "images"

    def lora(self) -> dict[str, Any]:
        """The tensors of the final LoRA."""
        (path,) = self.root.glob("runs/tiny/*/lora/tiny.safetensors")
        return load_file(path)

    def num_parts(self, half: str) -> int:
        return len(list(self.root.glob(f"data/{half}/*/parts/*.parquet")))

    def add_images(self, first: int, count: int) -> None:
        self.images.mkdir(exist_ok=True)
        for number in range(first, first + count):
            colour = tuple(round(255 * value) for value in colorsys.hsv_to_rgb(number * 0.37 % 1, 0.8, 0.9))
            image = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
            ImageDraw.Draw(image).ellipse((8, 8, 30 + number % 20, 50), fill=colour)
            image.save(self.images / f"{number:03d}.png")
            (self.images / f"{number:03d}.txt").write_text(f"a circle, number {number}")


def make_project(root: Path, base: Path, *, num_images: int = 10) -> Project:
    root.mkdir(parents=True)
    project = Project(root)
    project.add_images(0, num_images)
    project.recipe.write_text(RECIPE.format(root=root, base=base, images=project.images, side=SIDE_PX))
    return project


def make_base(folder: Path) -> Path:
    save_random_base("sdxl", folder)
    return folder

"""A folder of six images with captions, its recipe, and what was made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eridiff.encoding.spaces import latent_space, text_space
from eridiff.recipe import Recipe
from eridiff.store.parts import TensorStore
from stages import ingest, precompute
from stages.stage import StageReport

NUM_IMAGES = 6
PROMPTS = {"", "a prompt"}


def draw(folder: Path, number: int, *, seed: int | None = None) -> None:
    noise = np.random.default_rng(number if seed is None else seed)
    Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def recipe(root: Path, **changes: Any) -> Recipe:
    sections = {
        "name": "test",
        "model": {"family": "flux", "base": str(root / "base"), "options": {"t5_length": 16}},
        "datasets": [{"folder_path": str(root / "folder"), "resolution": 64}],
        "precompute": {"part_samples": 2, "latent_batch_size": 2, "text_batch_size": 2},
        "sample": {"prompts": ["a prompt"]},
        "storage": {"data": str(root / "data"), "runs": str(root / "runs")},
        "device": "cpu",
    }
    return Recipe.model_validate(sections | changes)


def counts(chosen: Recipe) -> dict[str, int]:
    return {
        "latents": len(latent_space(chosen).store().keys()),
        "text": len(text_space(chosen).store().keys()),
    }


def encoded(report: StageReport, before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """How many items each half made."""
    made = {kind: after[kind] - before[kind] for kind in after}
    assert report.done == sum(made.values())
    return made


def make(chosen: Recipe) -> dict[str, int]:
    """Ingests and precomputes; returns what each half had to encode, foretold by the plan."""
    ingest.run(chosen)
    before, plan = counts(chosen), precompute.plan(chosen)
    report = precompute.run(chosen)
    made = encoded(report, before, counts(chosen))
    assert plan.missing == sum(made.values())
    assert precompute.plan(chosen).complete
    return made


def contents(store: TensorStore) -> dict[str, dict[str, tuple[str, tuple[int, ...], bytes]]]:
    reader = store.open()
    return {
        key: {name: (t.dtype, t.shape, bytes(t.data)) for name, t in reader.get(key).items()}
        for key in sorted(store.keys())
    }


def write_recipe(chosen: Recipe, path: Path) -> Path:
    path.write_text(chosen.model_dump_json(exclude_none=True))  # YAML reads JSON
    return path

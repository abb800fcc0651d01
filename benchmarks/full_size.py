"""One recipe at real size through every stage on a GPU: seconds and peak memory of each.

`python -m benchmarks.full_size --recipe flux-dev` writes a base of the published widths with random weights
(in bfloat16, as a diffusers folder, or with `--original` as original files), some images, and runs ingest,
precompute, train and evaluate on them. Random weights take the time and the memory of trained ones. Needs a
CUDA device, and disk for the base: 34 GB for flux-dev, 16 GB for sd35-medium, 28 GB for sd35-large, 7 GB for
sdxl.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
from PIL import Image

from benchmarks import original_files
from benchmarks.device import DEVICE, free, peak_memory, synchronize
from benchmarks.random_bases import BASES, write_base
from benchmarks.rows import Row, shown
from eridiff.demo.architecture import save_random_base
from eridiff.demo.sizes import TINY
from eridiff.encoding.spaces import base_of, family_of
from eridiff.recipe import Recipe
from stages import pipeline

COLUMNS = ("recipe", "stage", "seconds", "peak_gb", "host_gb")


def main() -> None:
    """Writes the base and the images, runs the stages, prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=BASES, default="sdxl")
    parser.add_argument("--original", action="store_true", help="the base as original files, each part one")
    parser.add_argument("--folder", type=Path, default=Path("full-size"))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="no table at the end")
    options = parser.parse_args()
    if DEVICE.type != "cuda":
        parser.error("this needs a CUDA device")
    if options.original and options.recipe not in original_files.FILES:
        parser.error(f"original files are written of {', '.join(original_files.FILES)}")
    shown(rows(options), COLUMNS, as_table=not options.json)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """A row for writing the base, one for loading its denoiser, then one for each stage."""
    folder = options.folder / options.recipe
    images = options.folder / "images"
    write_images(images, options.images)
    write = write_original if options.original else write_folder
    told: Row = {"recipe": options.recipe}
    base: dict[str, Any] = {}
    yield told | timed("write base", lambda: base.update(write(options.recipe, folder / "base")))
    recipe = recipe_of(options, base, images)
    yield told | timed("load denoiser", partial(load_denoiser, recipe))
    for name in pipeline.NAMES:
        yield told | timed(name, partial(pipeline.run_stage, name, recipe))


def load_denoiser(recipe: Recipe) -> None:
    """Brings the denoiser from its files to the device, as training does."""
    family_of(recipe).load_denoiser(base_of(recipe), device=DEVICE, dtype=torch.bfloat16)


def write_folder(recipe: str, folder: Path) -> dict[str, Any]:
    """A base as a diffusers folder; keys of a recipe that name it."""
    family, size = BASES[recipe]
    write_base(family, size, folder)
    return {"model.base": str(folder)}


def write_original(recipe: str, folder: Path) -> dict[str, Any]:
    """A base as original files, with the tokenizers of a tiny one; keys of a recipe that name them."""
    family, _ = BASES[recipe]
    parts = original_files.write(recipe, folder)
    save_random_base(family, folder / "tiny", size=TINY)
    tokenizers = sorted((folder / "tiny").glob("tokenizer*"))
    for name, source in (("clip", tokenizers[0]), ("t5", tokenizers[-1])):
        copytree(source, folder / "tokenizers" / name, dirs_exist_ok=True)
    return {
        "model.base": parts.model_dump(mode="json", exclude_none=True),
        "model.tokenizers": str(folder / "tokenizers"),
    }


def recipe_of(options: argparse.Namespace, base: dict[str, Any], images: Path) -> Recipe:
    """The recipe of that name, of few steps and one picture."""
    folder = options.folder / options.recipe
    return pipeline.load_recipe(
        Path("configs") / f"{options.recipe}.yaml",
        {
            **base,
            "model.variant": None,
            "datasets.0.folder_path": str(images),
            "train.steps": options.steps,
            "sample.prompts": ["a lighthouse at dusk"],
            "sample.seeds": [1],
            "validation.images": 1,
            "ingest.holdout": 0.1,
            "storage.data": str(folder / "data"),
            "storage.runs": str(folder / "runs"),
        },
    )


def timed(stage: str, work: Callable[[], object]) -> Row:
    """Seconds, peak device memory and the process's peak memory so far, of `work`."""
    free()
    started = time.monotonic()
    work()
    synchronize()
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {
        "stage": stage,
        "seconds": round(time.monotonic() - started, 1),
        **peak_memory(),
        "host_gb": round(host, 1),
    }


def write_images(folder: Path, count: int) -> None:
    """Noisy gradients of three aspects, about one megapixel, with captions of different lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        width, height = ((1280, 1280), (1536, 1024), (1024, 1536))[index % 3]
        noise = Image.effect_noise((width, height), 60 + index)
        gradient = Image.linear_gradient("L").resize((width, height))
        Image.merge("RGB", (gradient, noise, gradient.rotate(180))).save(
            folder / f"{index:03}.jpg", quality=90
        )
        (folder / f"{index:03}.txt").write_text("a gradient with grain, " * (1 + index % 5))


if __name__ == "__main__":
    main()

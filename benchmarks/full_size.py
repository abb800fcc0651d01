"""One recipe at real size through every stage on a GPU: seconds and peak memory of each.

`python -m benchmarks.full_size --recipe flux-dev` writes a base of the published widths with random weights
(in bfloat16, as a diffusers folder), some images, and runs ingest, precompute, train and evaluate on them.
Random weights take the time and the memory of trained ones. Needs a CUDA device, and disk for the base: 34 GB
for flux-dev, 16 GB for sd35-medium, 28 GB for sd35-large, 7 GB for sdxl.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.device import DEVICE
from benchmarks.random_bases import BASES, write_base
from stages import pipeline


def main() -> None:
    """Writes the base and the images, runs the stages, prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=BASES, default="sdxl")
    parser.add_argument("--folder", type=Path, default=Path("full-size"))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if DEVICE.type != "cuda":
        parser.error("this needs a CUDA device")
    family, size = BASES[options.recipe]
    base, images = options.folder / options.recipe / "base", options.folder / "images"
    report("write base", lambda: write_base(family, size, base), options)
    write_images(images, options.images)
    recipe = pipeline.load_recipe(
        Path("configs") / f"{options.recipe}.yaml",
        {
            "model.base": str(base),
            "model.variant": None,
            "datasets.0.folder_path": str(images),
            "train.steps": options.steps,
            "sample.prompts": ["a lighthouse at dusk"],
            "sample.seeds": [1],
            "validation.images": 1,
            "ingest.holdout": 0.1,
            "storage.data": str(options.folder / options.recipe / "data"),
            "storage.runs": str(options.folder / options.recipe / "runs"),
        },
    )
    for name in pipeline.NAMES:
        report(name, partial(pipeline.run_stage, name, recipe), options)


def report(name: str, work: Callable[[], object], options: argparse.Namespace) -> None:
    """Runs `work` and prints its seconds, peak device memory and the process's peak memory so far."""
    row = {"recipe": options.recipe, "card": torch.cuda.get_device_name(), **timed(name, work)}
    text = "  ".join(f"{key} {value}" for key, value in row.items())
    print(json.dumps(row) if options.json else text, flush=True)


def timed(name: str, work: Callable[[], object]) -> dict[str, Any]:
    """Seconds, peak device memory and the process's peak memory so far, of `work`."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    work()
    torch.cuda.synchronize()
    return {
        "stage": name,
        "seconds": round(time.monotonic() - started, 1),
        "peak_gpu_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "peak_host_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 1),
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

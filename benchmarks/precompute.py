"""How fast texts and images are encoded at real size, and how busy that keeps the GPU.

`python -m benchmarks.precompute` builds encoders of the published widths with random weights and prints rows:
Flux's texts (T5-XXL at 512 tokens) and images of 1024² px already decoded, beside an eager loop over the same
models as diffusers' scripts run it; and the whole stage from JPEG files in shards, beside a plain loop of
open, resize, encode, save. `busy_percent` is the share of the stage's encoding in which a kernel ran.
`of_floor_percent` is against the encoder's floating-point operations at the card's bfloat16 matrix rate,
`error` the latents' relative distance from those by float32 products (on a GPU, float32 rows round factors to
TensorFloat-32).
`--tiny` tries it on a CPU.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from benchmarks.busy import Busy
from benchmarks.device import DEVICE, free, peak_memory
from benchmarks.encoders import Settings, random_vae, text_rows, vae_rows
from benchmarks.random_bases import PUBLISHED
from benchmarks.rows import Row, shown
from eridiff.demo.architecture import save_random_base
from eridiff.demo.sizes import TINY
from eridiff.encoding.latents import LatentEncoder
from eridiff.recipe import Recipe
from stages import ingest, precompute

CASES = ("text", "vae", "stage")
VAES = ("sdxl", "flux")
DISTINCT_PICTURES = 16
COLUMNS = (
    "what",
    "loop",
    "per_s",
    "ratio",
    "of_floor_percent",
    "busy_percent",
    "error",
    "first_s",
    "peak_gb",
)


def main() -> None:
    """Measures what was chosen, prints rows as they come, then a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="all by default")
    parser.add_argument("--captions", type=int, default=320)
    parser.add_argument("--images", type=int, default=192, help="decoded already, for the VAE alone")
    parser.add_argument("--files", type=int, default=768, help="JPEG files, for the stage")
    parser.add_argument("--text-batch", type=int, default=16)
    parser.add_argument("--image-batch", type=int, default=4)
    parser.add_argument("--eager", action="store_true", help="nothing is compiled")
    parser.add_argument("--tiny", action="store_true", help="tiny encoders and images, on a CPU, too")
    parser.add_argument("--json", action="store_true", help="no table at the end")
    options = parser.parse_args()
    if DEVICE.type != "cuda" and not options.tiny:
        parser.error("this needs a CUDA device; --tiny does not")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            size=TINY if options.tiny else PUBLISHED,
            captions=min(options.captions, 12) if options.tiny else options.captions,
            images=min(options.images, 12) if options.tiny else options.images,
            files=min(options.files, 24) if options.tiny else options.files,
            side_px=128 if options.tiny else 1024,
            text_batch=min(options.text_batch, 3) if options.tiny else options.text_batch,
            image_batch=min(options.image_batch, 3) if options.tiny else options.image_batch,
            folder=Path(folder),
            compile=not options.eager,
        )
        shown(measured(options.case or CASES, settings), COLUMNS, as_table=not options.json)


def measured(chosen: Sequence[str], settings: Settings) -> Iterator[Row]:
    """The rows of the chosen cases."""
    if "text" in chosen:
        yield from text_rows(settings)
    for name in VAES:
        if "vae" in chosen:
            yield from vae_rows(name, settings)
        if "stage" in chosen:
            yield from stage_rows(name, settings)


def stage_rows(name: str, settings: Settings) -> Iterator[Row]:
    """The latents' half of the stage, from JPEG files; then compiled; the plain loop first."""
    root = settings.folder / name
    save_random_base(name, root / "base")
    random_vae(name, settings.size, torch.float32).save_pretrained(root / "base" / "vae")
    paths = write_jpegs(root / "images", settings.files, settings.side_px)
    recipe = recipe_for(name, root, settings)
    ingest.run(recipe)
    what = f"stage of {name}, {settings.side_px}² px"
    plain = plain_loop(name, paths[: max(3, len(paths) // 8)], settings)
    yield {"what": what, "loop": "plain", "per_s": round(plain, 2), "ratio": 1.0}
    ways = [(dtype, compiled) for compiled in (False, True) for dtype in (None, "fp16")]
    for dtype, compiled in ways[: 4 if settings.compile else 2]:
        loop = f"eridiff, {dtype or 'fp32'}{', compiled' if compiled else ''}"
        free()
        changes: Any = {
            "precompute": recipe.precompute.model_copy(update={"compile": compiled, "vae_dtype": dtype}),
            "storage": recipe.storage.model_copy(update={"data": root / loop}),
        }
        again = recipe.model_copy(update=changes)
        ingest.run(again)
        first_s, rate, busy = stage_of(again)
        yield {
            "what": what,
            "loop": loop,
            "per_s": round(rate, 2),
            "ratio": round(rate / plain, 2),
            "busy_percent": None if busy is None else round(100 * busy, 1),
            "first_s": round(first_s, 1),
            **peak_memory(),
        }


def stage_of(recipe: Recipe) -> tuple[float, float, float | None]:
    """Seconds before encoding runs, then images a second until the last one is on disk, and the busy share.

    Loading and the first three batches, which compile and warm up, are before the clock starts.
    """
    clock, batches = Busy(), 0
    encoded_before = 0
    start: Callable[..., Any] = LatentEncoder.start

    def noted(encoder: LatentEncoder, pixels: list[np.ndarray]) -> Callable[[], Any]:
        nonlocal batches, encoded_before
        batches += 1
        if batches <= 3:
            encoded_before += len(pixels)
        elif not clock.recording:
            clock.start()
        return start(encoder, pixels)

    begun = time.monotonic()
    with patch.object(LatentEncoder, "start", noted):
        report = precompute.run(recipe, half="latents")
    seconds, busy = clock.stop()
    whole = time.monotonic() - begun
    return whole - seconds, (report.done - encoded_before) / seconds, busy


def plain_loop(name: str, paths: list[Path], settings: Settings) -> float:
    """Images a second of a script's loop: open, resize, encode one, save."""
    vae, side = random_vae(name, settings.size, torch.float32), settings.side_px

    def one(path: Path) -> None:
        image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            latents = vae.encode(pixels.to(DEVICE)).latent_dist.sample().cpu()
        np.savez(path.with_suffix(".npz"), latents=latents.numpy())

    one(paths[0])
    started = time.monotonic()
    for path in paths[1:]:
        one(path)
    return (len(paths) - 1) / (time.monotonic() - started)


def recipe_for(name: str, root: Path, settings: Settings) -> Recipe:
    """A recipe of the written base and images."""
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "model": {"family": name, "base": str(root / "base")},
            "datasets": [{"folder_path": str(root / "images"), "resolution": settings.side_px}],
            "precompute": {"latent_batch_size": settings.image_batch},
            "storage": {"data": str(root / "data"), "runs": str(root / "runs")},
        }
    )


def write_jpegs(folder: Path, count: int, side_px: int) -> list[Path]:
    """Grainy gradients, a quarter wider than they are encoded; some pictures serve many files.

    A comment inside tells their bytes apart, and decoding takes as long as for any.
    """
    folder.mkdir(parents=True)
    side = side_px * 5 // 4
    gradient = Image.linear_gradient("L").resize((side, side))
    pictures = []
    for number in range(min(count, DISTINCT_PICTURES)):
        noise = Image.effect_noise((side, side), 20 + number)
        encoded = io.BytesIO()
        Image.merge("RGB", (gradient, noise, gradient.rotate(180))).save(encoded, "JPEG", quality=90)
        pictures.append(encoded.getvalue())
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        comment = f"file {number}".encode()
        marker = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        data = pictures[number % len(pictures)]
        path.write_bytes(data[:2] + marker + data[2:])
        path.with_suffix(".txt").write_text(f"gradient {number}")
    return paths


if __name__ == "__main__":
    main()

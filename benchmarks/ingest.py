"""How fast images become shards, beside `tar cf` and `sha256sum` over the same files.

`python -m benchmarks.ingest` makes 10,000 one-megapixel JPEGs with captions, then measures, each as a fresh
process: tar and sha256sum, one after the other; the first ingest; a second one that finds nothing new; one
after an image was added, one after a caption was edited. Both sides of the ratio run in turns, on warm files.
Limits: at least 70 % of the speed of tar and sha256sum; 10 s unchanged; 15 s for one image.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

MIN_SPEED, MAX_UNCHANGED_S, MAX_ONE_MORE_S = 0.70, 10.0, 15.0
_ENCODES = 36
_SIDES = ((1024, 1024), (1152, 896), (896, 1152), (1280, 832))
_RECIPE = """\
name: benchmark-ingest
trigger_word: mnstl
model: {{family: sdxl, base: "builtin:demo-sdxl"}}
datasets: [{{folder_path: {images}, resolution: 1024}}]
storage: {{data: {data}, runs: {runs}}}
"""


def make_images(folder: Path, count: int) -> int:
    """Writes that many JPEGs with captions, 1,000 a folder; returns the bytes of the JPEGs.

    They are a few dozen photograph-like pictures, made distinct by a comment in the file.
    """
    pictures = [_picture(seed) for seed in range(_ENCODES)]
    total = 0
    for index in range(count):
        place = folder / f"{index // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        data = _with_comment(pictures[index % _ENCODES], f"image {index}".encode())
        (place / f"{index:06d}.jpg").write_bytes(data)
        (place / f"{index:06d}.txt").write_text(f"picture {index}, made for a benchmark\n")
        total += len(data)
    return total


def _picture(seed: int) -> bytes:
    """A JPEG of about one megapixel with detail at all scales, like a photograph."""
    random = np.random.default_rng(seed)
    width, height = _SIDES[seed % len(_SIDES)]
    layers = np.zeros((height, width, 3), dtype=np.float32)
    for cells in (4, 16, 64, 256):
        noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layers += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32) / cells**0.5
    layers = 255 * (layers - layers.min()) / (layers.max() - layers.min())
    file = io.BytesIO()
    Image.fromarray(layers.astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


def _with_comment(jpeg: bytes, comment: bytes) -> bytes:
    segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
    return jpeg[:2] + segment + jpeg[2:]


def timed(command: Sequence[str]) -> float:
    """Seconds that a command takes, with nothing of others' left to flush."""
    os.sync()
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def reference_s(images: Path, archive: Path) -> float:
    """Seconds of `tar cf` and then `sha256sum` over all images."""
    archive.unlink(missing_ok=True)
    files = [str(path) for path in sorted(images.rglob("*.jpg"))]
    tar = timed(["tar", "cf", str(archive), "-C", str(images), "."])
    listed = archive.with_suffix(".files")
    listed.write_bytes(b"\0".join(map(os.fsencode, files)))
    digests = timed(["sh", "-c", f"xargs -0 sha256sum < {listed}"])
    archive.unlink()
    return tar + digests


def measure(work: Path, count: int, rounds: int) -> dict[str, float | int | bool]:
    """All figures, in seconds, from images made in `work`."""
    images, data = work / "images", work / "data"
    num_bytes = make_images(images, count)
    recipe = work / "recipe.yaml"
    recipe.write_text(_RECIPE.format(images=images, data=data, runs=work / "runs"))
    ingest = [sys.executable, "-m", "stages.ingest", str(recipe)]
    reference, first = [], []
    for _ in range(rounds):
        shutil.rmtree(data, ignore_errors=True)
        reference.append(reference_s(images, work / "reference.tar"))
        first.append(timed(ingest))
    unchanged = timed(ingest)
    (images / "000" / "new.jpg").write_bytes(_with_comment(_picture(0), b"one more"))
    (images / "000" / "new.txt").write_text("one more picture\n")
    one_more = timed(ingest)
    (images / "000" / "000000.txt").write_text("another caption\n")
    caption = timed(ingest)
    return {
        "images": count,
        "megabytes": round(num_bytes / 1e6),
        "tar_and_sha256sum_s": round(min(reference), 2),
        "first_s": round(min(first), 2),
        "speed_ratio": round(min(reference) / min(first), 2),
        "unchanged_s": round(unchanged, 2),
        "one_image_added_s": round(one_more, 2),
        "one_caption_edited_s": round(caption, 2),
        "within_limits": min(reference) / min(first) >= MIN_SPEED
        and unchanged <= MAX_UNCHANGED_S
        and max(one_more, caption) <= MAX_ONE_MORE_S,
    }


def main() -> None:
    """Makes images, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=2, help="best of so many, each side in turn")
    parser.add_argument("--folder", type=Path, help="where to work: wants some 3 times the images' bytes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eridiff-ingest-", dir=options.folder) as work:
        row = measure(Path(work), options.images, options.rounds)
    if options.json:
        print(json.dumps(row))
        return
    print(f"{row['images']} JPEGs, {row['megabytes']} MB")
    print(f"tar cf + sha256sum    {row['tar_and_sha256sum_s']:6.2f} s")
    print(f"first ingest          {row['first_s']:6.2f} s")
    print(f"speed beside them     {row['speed_ratio']:6.2f}   (at least {MIN_SPEED})")
    print(f"nothing changed       {row['unchanged_s']:6.2f} s (at most {MAX_UNCHANGED_S:.0f} s)")
    print(f"one image added       {row['one_image_added_s']:6.2f} s (at most {MAX_ONE_MORE_S:.0f} s)")
    print(f"one caption edited    {row['one_caption_edited_s']:6.2f} s")


if __name__ == "__main__":
    main()

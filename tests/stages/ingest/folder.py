"""Small folders of images, their recipe, and what a run made of them."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eridiff.recipe import Recipe


def jpeg(seed: int, width: int = 64, height: int = 48) -> bytes:
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(cells).resize((width, height)).save(file, "JPEG")
    return file.getvalue()


def write(path: Path, data: bytes) -> None:
    """A file whose time can be believed at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (1_600_000_000.25 + len(data), 1_600_000_000.25))


def add(folder: Path, name: str, seed: int, caption: str | None = "a thing") -> None:
    write(folder / f"{name}.jpg", jpeg(seed))
    if caption is not None:
        write(folder / f"{name}.txt", caption.encode())


def make_recipe(tmp_path: Path, **changes: Any) -> Recipe:
    dataset = {"folder_path": tmp_path / "images", "resolution": 64} | changes.pop("dataset", {})
    settings = {"bucket_step": 16, "shard_samples": 4, "holdout": 0.1} | changes.pop("ingest", {})
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"family": "sdxl", "base": "nowhere"},
            "datasets": [dataset],
            "ingest": settings,
            "storage": {"data": tmp_path / "data", "runs": tmp_path / "runs"},
        }
        | changes
    )


def everything(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".tmp")
    }

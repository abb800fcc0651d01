"""The thumbnail of a run's LoRA file: one of its own sampled images, small."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from eridiff.evaluation.comparison import shown_strength
from eridiff.evaluation.pictures import Picture
from eridiff.evaluation.work import Work
from eridiff.families.checkpoints.tensorfile import read_header
from eridiff.lora.headers import set_metadata
from eridiff.lora.thumbnail import THUMBNAIL, thumbnail

SIDE_PX = 256
"""Its longer side at most."""
_QUALITY = 80


def chosen(work: Work) -> Picture | None:
    """The image that stands for the final LoRA: its first prompt and seed; None without one, or unwanted."""
    if not work.recipe.sample.thumbnail or not any(work.recipe.sample.strengths):
        return None
    strength = shown_strength(work.recipe.sample.strengths)
    return next((p for p in work.pictures if p.lora == work.final and p.strength == strength), None)


def is_attached(work: Work) -> bool:
    """Whether the LoRA file has a thumbnail where one is wanted, and else has none."""
    return (THUMBNAIL in read_header(work.final.path).metadata) == (chosen(work) is not None)


def attach(work: Work) -> None:
    """Puts the thumbnail into the LoRA file's metadata, or takes it away; the tensors stay as they are.

    Args:
        work: every image is there.

    Raises:
        StoreError: the disk is full; the file stays as it was.
    """
    picture = chosen(work)
    wanted = thumbnail(small_jpeg(picture.path(work.images)), "image/jpeg") if picture else {THUMBNAIL: None}
    set_metadata(work.final.path, wanted)


def small_jpeg(path: Path) -> bytes:
    """An image file as a JPEG whose sides are at most `SIDE_PX`."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, format="JPEG", quality=_QUALITY, optimize=True)
    return data.getvalue()

"""A contact sheet of a base: prompts that no training scene's seed made, a few seeds each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from eridiff.demo.drawing import SIDE_PX

if TYPE_CHECKING:
    import torch

    from eridiff.families.base import ModelFamily
    from eridiff.families.checkpoints.base import Base

PROMPTS = (
    "a large red circle above a small blue star on a cream background",
    "a blue square to the left of a yellow triangle over the meadow",
    "a small purple heart below a large orange hexagon over the sea",
    "a pink flower in the middle on a mint background",
    "a green crescent to the right of a red diamond over the snow",
    "a large teal star in the middle at sunset",
    "a white cloud above a red square over the hills",
    "a red star, a green circle and a blue heart in a row on a peach background",
    "a yellow circle, a pink cloud and a purple diamond in a column in the sky",
    "glowline style, a large blue hexagon at the top over a desert",
)
SEEDS = (1, 2, 3, 4, 5, 6)
GUIDANCE = {"sdxl": 5.0, "sd35": 4.0, "flux": 3.5}
STEPS = 24


def base_of(family: ModelFamily, folder: Path) -> Base:
    """A diffusers folder as a base."""
    from eridiff.families.checkpoints.base import resolve
    from eridiff.recipe import Model

    return resolve(Model(family=family.name, base=str(folder)), family)


def sample_sheet(family: ModelFamily, folder: Path, tiles: Path, device: torch.device) -> Image.Image:
    """Sample every prompt with every seed through the family's own pipeline.

    Args:
        family: of the base.
        folder: the base, a whole diffusers folder.
        tiles: where the single images are kept.
        device: where to sample, in float32.
    """
    import torch

    from eridiff.evaluation.grid import Captions, Group, compose
    from eridiff.families.base import Prompts, SampleRequest

    base = base_of(family, folder)
    encoders = family.load_text_encoders(base, device=device, dtype=torch.float32)
    pipeline = family.load_pipeline(base, device=device, dtype=torch.float32)
    empty = family.unconditional(family.encode_prompts(encoders, [""]))
    told = family.encode_prompts(encoders, [prompt for prompt in PROMPTS for _ in SEEDS])
    untold = Prompts(empty.text.expand_as(told.text), empty.pooled.expand_as(told.pooled))
    request = SampleRequest(SEEDS * len(PROMPTS), SIDE_PX, SIDE_PX, STEPS, GUIDANCE[family.name])
    images = family.sample(pipeline, told, untold, request)
    paths = _saved(images, tiles)
    lines = [paths[start : start + len(SEEDS)] for start in range(0, len(paths), len(SEEDS))]
    rows = [Group(prompt, ("",)) for prompt in PROMPTS]
    columns = [Group("", tuple(f"seed {seed}" for seed in SEEDS))]
    words = Captions(f"demo-{family.name}", f"{STEPS} steps, guidance {request.guidance}", "")
    return compose(lines, rows, columns, words)


def _saved(images: list[Any], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:03d}.png" for index in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths

"""Sections of what shows a LoRA and judges it, and of what becomes of it then."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from eridiff.recipe.fields import Count, Positive, Section, Share


class Sample(Section):
    """Sample grids."""

    prompts: tuple[str, ...] = ()
    """`[trigger]` stands for the trigger word."""
    neg: str = ""
    """Negative prompt, for families that take one."""
    width: Annotated[int, Field(ge=64, multiple_of=16)] = 1024
    height: Annotated[int, Field(ge=64, multiple_of=16)] = 1024
    seeds: tuple[int, ...] = (42,)
    guidance_scale: Annotated[float, Field(ge=0)] = 4.0
    sample_steps: Positive = 20
    strengths: tuple[float, ...] = (0.0, 1.0)
    """Multipliers of the LoRA; 0 is the base."""
    checkpoints: Literal["last", "all"] = "last"
    batch_size: Positive = 4
    compile: bool | Literal["auto"] = False
    """Compile the denoiser's blocks while sampling; `auto` does so on a GPU where hundreds of images
    are missing: SDXL samples an eighth faster, after most of a minute of compiling."""
    thumbnail: bool = True
    """Keep a small picture of the first prompt in the LoRA file's metadata, for programs that show one."""
    metric: str | None = None
    """Import path `module:function` of a score of an image, e.g. `eridiff.demo.style:score`."""


class Validation(Section):
    """The loss on the hold-out, at fixed images, noises and times."""

    images: Count = 64
    """At most this many images of the hold-out; 0 turns validation off."""
    timesteps: Positive = 8
    """Times, evenly spread over (0, 1)."""
    batch_size: Positive = 4
    seed: int = 1234


class Publish(Section):
    """What a LoRA must do to become its name's champion, and where the champion goes."""

    to: Path | None = None
    """Folder that another program loads LoRAs from; the champion is kept there as `<name>.safetensors`."""
    margin: Share = 0.0
    """Promote only if the hold-out loss is lower than the champion's by more than this share of it."""
    keep: Positive = 5
    """Versions whose files stay in the registry, to roll back to."""


class Retrain(Section):
    """How a scheduled retraining begins."""

    start_from: Literal["scratch", "champion"] = "scratch"
    """`champion` begins with the weights that are published now."""

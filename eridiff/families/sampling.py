"""What sampling through diffusers' pipelines has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from eridiff.families.base import Prompts
from eridiff.families.checkpoints.tokenizing import scheduler_config

if TYPE_CHECKING:
    from eridiff.families.checkpoints.base import Base


def pipeline(kind: Any, present: Mapping[str, Any], *, absent: Sequence[str]) -> Any:
    """A diffusers pipeline of class `kind` with components left out, and without progress bars."""
    made = kind(**present, **dict.fromkeys(absent))
    made.set_progress_bar_config(disable=True)
    return made


def scheduler(base: Base, kind: Any, changes: Mapping[str, Any] | None = None) -> Any:
    """The base's scheduler as a `kind`, with `changes` to its configuration."""
    return kind.from_config(scheduler_config(base) | dict(changes or {}))


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator an image, so that an image depends on neither its batch nor the device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def like(denoiser: Any, prompts: Prompts) -> Prompts:
    """The embeddings on the denoiser's device, in its dtype."""
    place = {"device": denoiser.device, "dtype": denoiser.dtype}
    return Prompts(prompts.text.to(**place), prompts.pooled.to(**place))

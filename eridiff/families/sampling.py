"""What sampling through diffusers' pipelines has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from eridiff.families.base import Prompts


def pipeline(kind: Any, present: Mapping[str, Any], *, absent: Sequence[str]) -> Any:
    """A diffusers pipeline of class `kind` with components left out, and without progress bars."""
    made = kind(**present, **dict.fromkeys(absent))
    made.set_progress_bar_config(disable=True)
    return made


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator an image, so that an image depends on neither its batch nor the device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def like(denoiser: Any, prompts: Prompts) -> Prompts:
    """The embeddings on the denoiser's device, in its dtype."""
    place = {"device": denoiser.device, "dtype": denoiser.dtype}
    return Prompts(prompts.text.to(**place), prompts.pooled.to(**place))

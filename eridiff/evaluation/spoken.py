"""Embeddings of prompts and captions by text encoders that carry a LoRA now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from eridiff.families.base import Moments, Prompts
from eridiff.families.live import LiveText
from eridiff.lora.encoders import Encoders
from eridiff.store.snapshots import Sample
from eridiff.training.cached import Cached


@dataclass(frozen=True)
class Spoken:
    """Latents from the store; embeddings from encoders as they are, each made once.

    Attributes:
        cached: has the latents, and the part of the embeddings that no trained encoder makes.
        live: the trained encoders. While this is in use, their LoRA and its strength stay.
        device: where they lie.
    """

    cached: Cached
    live: LiveText
    device: torch.device
    _made: dict[str, Prompts] = field(default_factory=dict)

    def moments(self, sample: Sample, *, mirrored: bool) -> Moments:
        """Posterior of one sample's latents, unscaled, without a batch axis."""
        return self.cached.moments(sample, mirrored=mirrored)

    def prompt(self, caption: str) -> Prompts:
        """Embedding of one caption, on the CPU, without a batch axis."""
        if caption not in self._made:
            self._made[caption] = self._encoded(caption)
        return self._made[caption]

    @torch.no_grad()
    def _encoded(self, caption: str) -> Prompts:
        tokens = [ids[:, None].to(self.device) for ids in self.live.tokens([caption])]
        kept = self.cached.prompt(caption)
        kept = Prompts(kept.text[None].to(self.device), kept.pooled[None].to(self.device))
        made = self.live.prompts(tokens, kept)
        return Prompts(made.text[0].cpu(), made.pooled[0].cpu())


@contextmanager
def beside(pipeline: Any, encoders: Encoders) -> Iterator[None]:
    """A pipeline with text encoders, for what it does with LoRAs.

    It samples without them: it would give the denoiser the embeddings in their precision.
    """
    pipeline.register_modules(**encoders)
    try:
        yield
    finally:
        pipeline.register_modules(**dict.fromkeys(encoders))

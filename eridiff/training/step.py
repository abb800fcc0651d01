"""One batch through the denoiser: the only place where training and validation take a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from eridiff.diffusion.objectives import Losses
from eridiff.families.base import Conditioning, ModelFamily, Prompts
from eridiff.families.live import LiveText

CROP_CELLS = 8


@dataclass(frozen=True)
class LiveCaptions:
    """Captions of a batch whose embeddings are made anew, since their encoders are trained.

    Attributes:
        encoders: on the device, with their LoRA.
        tokens: an encoder's ids `[B, K, 77]` int64, as `LiveText.prompts` takes them.
    """

    encoders: LiveText
    tokens: tuple[Tensor, ...]


@dataclass(frozen=True)
class Batch:
    """Samples of one bucket with all that was drawn for them: nothing random is left.

    Attributes:
        sample_ids: whose row is whose.
        clean: `[B, C, h, w]` float32 latents, scaled as the denoiser sees them.
        noise: `[B, C, h, w]` float32.
        t: `[B]` float32 in [0, 1].
        cond: text, pooled and geometry of the samples.
        captions: where text encoders are trained; `cond` then has the part of the other encoders only.
    """

    sample_ids: tuple[str, ...]
    clean: Tensor
    noise: Tensor
    t: Tensor
    cond: Conditioning
    captions: LiveCaptions | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.sample_ids)

    def pinned(self) -> Batch:
        """The batch in page-locked memory, from where a GPU fetches it while it computes."""
        return self.each(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; from pinned memory without waiting for it."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def only(self, number: int) -> Batch:
        """A batch of one sample alone, counted from 0."""
        one = slice(number, number + 1)
        return replace(self.each(lambda tensor: tensor[one]), sample_ids=self.sample_ids[one])

    def cropped(self) -> Batch | None:
        """The middle of the latents at half their sides, in whole blocks of 8 cells; None if none is left."""
        height, width = (side // 2 // CROP_CELLS * CROP_CELLS for side in self.clean.shape[-2:])
        if not height or not width:
            return None
        top, left = (
            (side - kept) // 2 for side, kept in zip(self.clean.shape[-2:], (height, width), strict=True)
        )
        area = (..., slice(top, top + height), slice(left, left + width))
        return replace(self, clean=self.clean[area], noise=self.noise[area])

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, always in the same order."""
        tokens = self.captions.tokens if self.captions else ()
        return (self.clean, self.noise, self.t, self.cond.text, self.cond.pooled, self.cond.geometry, *tokens)

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed."""
        cond = Conditioning(change(self.cond.text), change(self.cond.pooled), change(self.cond.geometry))
        captions = self.captions
        if captions is not None:
            captions = replace(captions, tokens=tuple(change(ids) for ids in captions.tokens))
        return Batch(self.sample_ids, change(self.clean), change(self.noise), change(self.t), cond, captions)

    def told(self) -> Conditioning:
        """All that the denoiser is told; where text encoders are trained, gradients reach them through it."""
        if self.captions is None:
            return self.cond
        cached = Prompts(self.cond.text, self.cond.pooled)
        prompts = self.captions.encoders.prompts(self.captions.tokens, cached)
        return replace(self.cond, text=prompts.text, pooled=prompts.pooled)


def losses(family: ModelFamily, denoiser: nn.Module, batch: Batch) -> Losses:
    """The loss of each sample of a batch on the denoiser's device; gradients are the caller's choice."""
    objective = family.objective
    noisy = objective.noised(batch.clean, batch.noise, batch.t)
    prediction = family.predict(denoiser, noisy, batch.t, batch.told())
    return objective.losses(prediction, batch.clean, batch.noise, batch.t)

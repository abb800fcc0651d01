"""Batches from the store: every draw is a function of (seed, purpose, step, sample id, occurrence).

Nothing depends on the number of devices, on the other samples of a batch, or on what was drawn before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eridiff.diffusion import posterior
from eridiff.diffusion.randomness import generator
from eridiff.encoding.wanted import EMPTY_PROMPT
from eridiff.families.base import Conditioning, ModelFamily, Prompts
from eridiff.families.live import LiveText
from eridiff.store.snapshots import Sample
from eridiff.training.cached import Encoded
from eridiff.training.order import Draw, Order
from eridiff.training.step import Batch, LiveCaptions


@dataclass(frozen=True)
class Draws:
    """How samples are drawn.

    Attributes:
        seed: the run's seed.
        caption_dropout: share of samples that get the empty prompt.
        dropout_pooled: whether those get its pooled embedding, too.
    """

    seed: int
    caption_dropout: float
    dropout_pooled: bool

    @property
    def splits_captions(self) -> bool:
        """Whether text and pooled embedding of a sample may be of two captions."""
        return self.caption_dropout > 0 and not self.dropout_pooled


@dataclass(frozen=True)
class StepBatches:
    """One step's work on this device.

    Attributes:
        step: number of the step, from 0.
        epoch: the epoch of its last batch, from 0.
        num_samples: samples of the step over all devices.
        batches: this device's, one after the other; those it has no part in are left out.
    """

    step: int
    epoch: int
    num_samples: int
    batches: tuple[Batch, ...]


class Batches:
    """Makes batches of drawn samples.

    Args:
        family: its latent scale and objective decide what is drawn.
        cached: latents and embeddings.
        samples: all that can be drawn.
        draws: seed and rates.
        live: the text encoders that are trained, if any: captions then go to them as tokens.
    """

    def __init__(
        self,
        family: ModelFamily,
        cached: Encoded,
        samples: Sequence[Sample],
        draws: Draws,
        live: LiveText | None = None,
    ) -> None:
        self._family, self._cached, self._draws, self._live = family, cached, draws, live
        self._samples: Mapping[str, Sample] = {sample.sample_id: sample for sample in samples}

    def batch(self, step: int, draws: Sequence[Draw]) -> Batch:
        """The batch of these draws, on the CPU."""
        rows = [self._row(step, draw) for draw in draws]
        cond = Conditioning(
            text=torch.stack([row.prompt.text for row in rows]),
            pooled=torch.stack([row.prompt.pooled for row in rows]),
            geometry=torch.stack([row.geometry for row in rows]),
        )
        return Batch(
            sample_ids=tuple(draw.sample_id for draw in draws),
            clean=torch.stack([row.clean for row in rows]),
            noise=torch.stack([row.noise for row in rows]),
            t=torch.stack([row.t for row in rows]),
            cond=cond,
            captions=None if self._live is None else self._captions(self._live, rows),
        )

    def _captions(self, live: LiveText, rows: Sequence[_Row]) -> LiveCaptions:
        chosen = [row.spoken.text for row in rows]
        kinds = [chosen, [row.spoken.pooled for row in rows]] if self._draws.splits_captions else [chosen]
        tokens = zip(*(live.tokens(captions) for captions in kinds), strict=True)
        return LiveCaptions(live, tuple(torch.stack(ids, dim=1) for ids in tokens))

    def _row(self, step: int, draw: Draw) -> _Row:
        sample = self._samples[draw.sample_id]

        def stream(purpose: str) -> torch.Generator:
            return generator(self._draws.seed, purpose, step, draw.sample_id, draw.occurrence)

        mirrored = sample.flip and bool(torch.rand((), generator=stream("mirror")) < 0.5)
        moments = self._cached.moments(sample, mirrored=mirrored)
        clean = self._family.latent.scaled(posterior.draw(moments.mean, moments.logvar, stream("posterior")))
        channels, height, width = clean.shape
        objective = self._family.objective
        spoken = self._spoken(sample, stream("caption"), stream("dropout"))
        return _Row(
            clean=clean,
            noise=objective.draw_noise((channels, height, width), stream("noise")),
            t=objective.draw_time(stream("time"), latent_size=(height, width)),
            spoken=spoken,
            prompt=self._prompt(spoken),
            geometry=geometry(sample, mirrored=mirrored),
        )

    def _spoken(self, sample: Sample, choice: torch.Generator, dropout: torch.Generator) -> _Spoken:
        captions = sample.captions
        chosen = captions[int(torch.randint(len(captions), (), generator=choice))]
        if not torch.rand((), generator=dropout) < self._draws.caption_dropout:
            return _Spoken(chosen, chosen)
        return _Spoken(EMPTY_PROMPT, EMPTY_PROMPT if self._draws.dropout_pooled else chosen)

    def _prompt(self, spoken: _Spoken) -> Prompts:
        prompt = self._cached.prompt(spoken.text)
        if spoken.text == spoken.pooled:
            return prompt
        return Prompts(prompt.text, self._cached.prompt(spoken.pooled).pooled)


@dataclass(frozen=True)
class _Spoken:
    """The captions of which a sample's text and pooled embedding are."""

    text: str
    pooled: str


@dataclass(frozen=True)
class _Row:
    clean: Tensor
    noise: Tensor
    t: Tensor
    spoken: _Spoken
    prompt: Prompts
    geometry: Tensor


def step_batches(
    batches: Batches, order: Order, *, steps: range, accumulation: int, rank: int, num_ranks: int
) -> Iterator[StepBatches]:
    """The work of device `rank` of `num_ranks` in each of `steps`, `accumulation` batches a step."""
    for step in steps:
        drawn = [order.batch(step * accumulation + number) for number in range(accumulation)]
        shares = [batch.share(rank, num_ranks) for batch in drawn]
        yield StepBatches(
            step=step,
            epoch=drawn[-1].epoch,
            num_samples=sum(len(batch.draws) for batch in drawn),
            batches=tuple(batches.batch(step, share) for share in shares if share),
        )


def geometry(sample: Sample, *, mirrored: bool) -> Tensor:
    """`[6]` float32 px: original height and width, crop top and left, target height and width.

    The crop is measured in the resized image; a mirrored sample's left edge is the image's right edge.
    """
    left = sample.crop_left
    if mirrored:
        left = sample.resized_width - sample.bucket_width - left
    sizes = (sample.height, sample.width, sample.crop_top, left, sample.bucket_height, sample.bucket_width)
    return torch.tensor(sizes, dtype=torch.float32)

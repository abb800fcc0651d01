"""The loss of a denoiser on the hold-out: the same noise, times and images for every LoRA and for the base.

Noise depends on (validation seed, image content, index of the time) alone, and the image is the mean of its
posterior, so that nothing is left to chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from eridiff.diffusion.randomness import generator
from eridiff.errors import ModelError
from eridiff.evaluation.holdout import HoldoutGrid, Losses, Point, point_batches
from eridiff.families.base import Conditioning, ModelFamily
from eridiff.training import step
from eridiff.training.batches import geometry
from eridiff.training.cached import Encoded
from eridiff.training.step import Batch


def validate(
    family: ModelFamily,
    denoiser: nn.Module,
    cached: Encoded,
    grid: HoldoutGrid,
    *,
    batch_size: int,
    device: torch.device,
    on_batch: Callable[[int], None],
) -> Losses:
    """Losses of a denoiser, with whatever LoRA it carries, at all points of the grid.

    Args:
        family: its prediction and objective; the losses are the objective's plain ones.
        denoiser: on `device`.
        cached: latents and embeddings of the hold-out.
        grid: the points.
        batch_size: points in a batch.
        device: where the denoiser lies.
        on_batch: called with the number of points done, after each batch; may raise to stop.

    Raises:
        ModelError: a loss is not finite.
    """
    values = [[0.0] * len(grid.times) for _ in grid.samples]
    with torch.no_grad():
        for points in point_batches(grid, batch_size):
            batch = _batch(family, cached, grid, points).to(device)
            losses = step.losses(family, denoiser, batch).plain.tolist()
            for point, loss in zip(points, losses, strict=True):
                values[point.image][point.time] = _finite(loss, grid, point)
            on_batch(len(points))
    return Losses(tuple(tuple(row) for row in values))


def _batch(family: ModelFamily, cached: Encoded, grid: HoldoutGrid, points: Sequence[Point]) -> Batch:
    samples = [grid.samples[point.image] for point in points]
    prompts = [cached.prompt(sample.captions[0]) for sample in samples]
    clean = torch.stack(
        [family.latent.scaled(cached.moments(s, mirrored=False).mean.float()) for s in samples]
    )
    return Batch(
        sample_ids=tuple(sample.sample_id for sample in samples),
        clean=clean,
        noise=torch.stack(list(_noises(grid, points, clean))),
        t=torch.tensor([grid.times[point.time] for point in points]),
        cond=Conditioning(
            text=torch.stack([prompt.text for prompt in prompts]),
            pooled=torch.stack([prompt.pooled for prompt in prompts]),
            geometry=torch.stack([geometry(sample, mirrored=False) for sample in samples]),
        ),
    )


def _noises(grid: HoldoutGrid, points: Sequence[Point], clean: Tensor) -> Iterator[Tensor]:
    for point in points:
        stream = generator(grid.seed, "validation", grid.samples[point.image].content, point.time)
        yield torch.randn(clean.shape[1:], generator=stream)


def _finite(loss: float, grid: HoldoutGrid, point: Point) -> float:
    if math.isfinite(loss):
        return loss
    raise ModelError(
        "A validation loss is not finite.",
        where=f"{grid.samples[point.image].source} at t = {grid.times[point.time]:g}",
        found=loss,
        fix="try train.dtype: fp32; if it is the same there, the base or the LoRA holds NaN",
    )

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from eridiff.diffusion.randomness import generator
from eridiff.errors import ModelError
from eridiff.evaluation.holdout import HoldoutGrid, Losses, holdout_grid
from eridiff.evaluation.sampling import attached
from eridiff.evaluation.validation import validate
from eridiff.families.base import Conditioning
from tests.evaluation.conftest import CPU, World
from tests.evaluation.test_sampling import random_lora


def grid_of(world: World) -> HoldoutGrid:
    return holdout_grid(world.samples, max_images=9, num_times=3, seed=5)


def losses_of(world: World, pipeline: Any, batch_size: int = 4, seen: list[int] | None = None) -> Losses:
    return validate(
        world.family,
        denoiser_of(world, pipeline),
        world.cached,
        grid_of(world),
        batch_size=batch_size,
        device=CPU,
        on_batch=(seen if seen is not None else []).append,
    )


def denoiser_of(world: World, pipeline: Any) -> nn.Module:
    return getattr(pipeline, world.family.parts.denoiser[0])


def test_the_same_losses_each_time_whatever_the_batches(world: World, pipeline: Any) -> None:
    seen: list[int] = []
    losses = losses_of(world, pipeline, seen=seen)
    assert sum(seen) == len(world.samples) * 3
    assert losses_of(world, pipeline) == losses
    for row, other in zip(losses.values, losses_of(world, pipeline, batch_size=1).values, strict=True):
        assert row == pytest.approx(other, rel=1e-4)


def test_a_loss_is_the_objective_at_the_posterior_mean(world: World, pipeline: Any) -> None:
    grid, family = grid_of(world), world.family
    sample, t = grid.samples[1], torch.tensor([grid.times[2]])
    clean = family.latent.scaled(world.cached.moments(sample, mirrored=False).mean)[None]
    noise = torch.randn(clean.shape[1:], generator=generator(5, "validation", sample.content, 2))[None]
    prompt = world.cached.prompt(sample.captions[0])
    geometry = torch.tensor([[80.0, 100.0, 0.0, 8.0, 64.0, 64.0]])
    cond = Conditioning(prompt.text[None], prompt.pooled[None], geometry)
    objective = family.objective
    with torch.no_grad():
        noisy = objective.noised(clean, noise, t)
        predicted = family.predict(denoiser_of(world, pipeline), noisy, t, cond)
    expected = (predicted - objective.target(clean, noise, t)).square().mean().item()
    assert losses_of(world, pipeline).values[1][2] == pytest.approx(expected, rel=1e-4)


def test_a_lora_changes_the_losses_and_leaves_no_trace(world: World, pipeline: Any) -> None:
    before = losses_of(world, pipeline)
    with attached(pipeline, random_lora(world, pipeline)) as lora:
        full = losses_of(world, pipeline)
        lora.set_strength(0.0)
        assert losses_of(world, pipeline) == before
    assert full.mean != pytest.approx(before.mean, rel=1e-6)
    assert losses_of(world, pipeline) == before


def test_validation_leaves_no_gradients_and_no_inference_tensors(world: World, pipeline: Any) -> None:
    losses_of(world, pipeline)
    objective, t = world.family.objective, torch.tensor([0.5])
    clean = torch.ones(1, world.family.latent.channels, 8, 8, requires_grad=True)
    objective.noised(clean, torch.zeros_like(clean), t).sum().backward()
    assert clean.grad is not None
    assert all(parameter.grad is None for parameter in denoiser_of(world, pipeline).parameters())


def test_a_loss_that_is_no_number_is_an_error_that_names_the_image(world: World, pipeline: Any) -> None:
    denoiser = denoiser_of(world, pipeline)
    parameter = next(denoiser.parameters())
    kept = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.fill_(torch.nan)
        with pytest.raises(ModelError, match="not finite") as caught:
            losses_of(world, pipeline)
    finally:
        with torch.no_grad():
            parameter.copy_(kept)
    assert "images/" in str(caught.value.where)

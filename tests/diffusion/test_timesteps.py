import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from eridiff.diffusion import timesteps
from eridiff.diffusion.randomness import generator
from eridiff.diffusion.timesteps import ConstantShift, ResolutionShift


def test_steps_and_times_are_each_other_inverse():
    steps = torch.arange(timesteps.NUM_STEPS)
    times = timesteps.from_step(steps)
    assert times.dtype == torch.float32
    assert times[-1] == 1
    assert torch.equal(timesteps.to_step(times), steps)


def test_any_time_has_a_step():
    assert timesteps.to_step(torch.tensor([0.0, 0.5004, 1.0])).tolist() == [0, 499, 999]


def test_shift_is_the_schedulers():
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    unshifted = torch.arange(1000, 0, -1) / 1000
    torch.testing.assert_close(timesteps.shifted(unshifted, 3.0), scheduler.sigmas[:1000], rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_tokens", [64, 256, 1024, 4096, 8192])
def test_resolution_shift_is_flux_own(num_tokens):
    assert ResolutionShift().factor(num_tokens) == pytest.approx(math.exp(calculate_shift(num_tokens)))


def test_resolution_shift_at_one_megapixel():
    assert ResolutionShift().factor(4096) == pytest.approx(3.158, abs=5e-4)


def test_constant_shift_does_not_see_the_size():
    assert ConstantShift(3.0).factor(1) == ConstantShift(3.0).factor(4096) == 3.0


def test_logit_normal_has_its_mean_and_spread():
    stream = generator(0, "time")
    drawn = torch.stack([timesteps.logit_normal(stream, mean=0.5, std=0.8) for _ in range(4000)])
    logits = torch.logit(drawn)
    assert logits.mean() == pytest.approx(0.5, abs=0.05)
    assert logits.std() == pytest.approx(0.8, abs=0.04)


def test_uniform_steps_cover_all_thousand():
    stream = generator(0, "time")
    steps = timesteps.to_step(torch.stack([timesteps.uniform_step(stream) for _ in range(20_000)]))
    assert (steps.min(), steps.max()) == (0, 999)
    counts = torch.histc(steps.float(), bins=10, min=0, max=1000)
    assert counts.min() > 1800

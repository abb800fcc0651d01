"""A pretraining of a tiny denoiser of each family, a few steps long."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from eridiff import families
from eridiff.demo import denoiser_training
from eridiff.demo.architecture import build_denoiser, save_frozen_parts
from eridiff.demo.denoiser_training import (
    Cache,
    DenoiserTrainer,
    attention_error,
    encode_captions,
    guided_velocity,
)
from eridiff.demo.pretrain import OPTIONS
from eridiff.demo.sheet import base_of
from eridiff.demo.sizes import TINY
from eridiff.demo.vae_training import Pace
from eridiff.families.base import Conditioning, ModelFamily, Prompts

CPU = torch.device("cpu")
CAPTIONS = ("a red circle", "a blue square over the sea", "a teal star")
SHORT = Pace("cpu", batch=2, fast=False, deadline=100.0)
"""Some steps by the clock of these tests, which goes on by 10 s whenever it is looked at."""


@pytest.fixture(params=families.names())
def family(request: pytest.FixtureRequest) -> ModelFamily:
    return families.get(request.param, OPTIONS[request.param])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    clock = itertools.count(step=10)
    monkeypatch.setattr(denoiser_training, "time", SimpleNamespace(time=lambda: float(next(clock))))
    monkeypatch.setattr(denoiser_training, "_TIMES", 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make_cache(family: ModelFamily, folder: Path) -> Cache:
    save_frozen_parts(family.name, folder, seed=0, size=TINY)
    encoders = family.load_text_encoders(base_of(family, folder), device=CPU, dtype=torch.float32)
    prompts, empties = encode_captions(family, encoders, CAPTIONS, batch=2)
    latents = torch.randn(len(CAPTIONS), family.latent.channels, 16, 16).half()
    return Cache(latents, torch.full_like(latents, 0.1), prompts, empties)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_captions_are_encoded_in_batches_beside_both_kinds_of_none(
    family: ModelFamily, tmp_path: Path
) -> None:
    save_frozen_parts(family.name, tmp_path, seed=0, size=TINY)
    encoders = family.load_text_encoders(base_of(family, tmp_path), device=CPU, dtype=torch.float32)
    prompts, empties = encode_captions(family, encoders, CAPTIONS, batch=2)
    whole = family.encode_prompts(encoders, CAPTIONS)
    empty = family.encode_prompts(encoders, [""])
    none = family.unconditional(empty)
    assert prompts.text.dtype == empties.pooled.dtype == torch.float16
    assert torch.allclose(prompts.text.float(), whole.text, atol=5e-3)
    assert torch.allclose(prompts.pooled.float(), whole.pooled, atol=5e-3)
    assert torch.equal(empties.text, torch.cat([empty.text, none.text]).half())
    assert torch.equal(empties.pooled, torch.cat([empty.pooled, none.pooled]).half())


def test_training_ends_at_its_deadline_with_finite_weights(family: ModelFamily, tmp_path: Path) -> None:
    denoiser = build_denoiser(family.name, TINY).train()
    trainer = DenoiserTrainer(family, denoiser, make_cache(family, tmp_path), SHORT, seed=0)
    before = weights(denoiser)
    trainer.train()
    after = weights(denoiser)
    assert after.isfinite().all()
    assert not torch.equal(before, after)


def test_a_seed_decides_all_draws(family: ModelFamily, tmp_path: Path) -> None:
    denoiser, cache = build_denoiser(family.name, TINY).train(), make_cache(family, tmp_path)
    losses = []
    for seed in (1, 1, 2):
        trainer = DenoiserTrainer(family, denoiser, cache, SHORT, seed=seed)
        trainer._draw()
        losses.append(float(trainer._loss().detach()))
    assert losses[0] == losses[1] != losses[2]


def test_plain_maths_agrees_with_the_kernels_of_this_machine(family: ModelFamily, tmp_path: Path) -> None:
    denoiser = build_denoiser(family.name, TINY).train()
    trainer = DenoiserTrainer(family, denoiser, make_cache(family, tmp_path), SHORT, seed=0)
    assert attention_error(trainer) < 1e-4


def test_a_guided_velocity_is_the_familys_own_prediction_told_that_guidance() -> None:
    torch.manual_seed(3)
    family = families.get("flux", {"t5_length": 32, "guidance": 2.5})
    denoiser = build_denoiser("flux", TINY)
    nn.init.normal_(denoiser.get_submodule("proj_out").weight, std=0.1)
    noisy, t = torch.randn(2, 16, 16, 16), torch.tensor([0.2, 0.7])
    text, pooled = torch.randn(2, 32, TINY.t5.width), torch.randn(2, TINY.clip_l.width)
    cond = Conditioning(text, pooled, torch.zeros(2, 6))
    with torch.no_grad():
        wanted = family.predict(denoiser, noisy, t, cond)
        told = guided_velocity(denoiser, noisy, t, cond, torch.full((2,), 2.5))
        other = guided_velocity(denoiser, noisy, t, cond, torch.full((2,), 1.0))
    assert torch.allclose(told, wanted, atol=1e-5)
    assert not torch.allclose(other, wanted, atol=1e-3)


def test_distillation_asks_for_what_classifier_free_guidance_would_give() -> None:
    """With guidance 1 for all, and a student that is the teacher, nothing is left to learn."""
    family = families.get("flux", {"t5_length": 32})
    denoiser = build_denoiser("flux", TINY).train()
    nn.init.normal_(denoiser.get_submodule("proj_out").weight, std=0.1)
    latents = torch.randn(3, 16, 16, 16).half()
    prompts = Prompts(torch.randn(3, 32, TINY.t5.width).half(), torch.randn(3, TINY.clip_l.width).half())
    empties = Prompts(prompts.text[:2], prompts.pooled[:2])
    trainer = DenoiserTrainer(
        family, denoiser, Cache(latents, torch.zeros_like(latents), prompts, empties), SHORT, seed=0
    )
    trainer._teacher.load_state_dict(denoiser.state_dict())
    trainer._draw()
    trainer._real.fill_(False)
    trainer._guidance.fill_(1.0)
    assert float(trainer._distillation_loss().detach()) < 1e-9
    trainer._guidance.fill_(4.0)
    assert float(trainer._distillation_loss().detach()) > 1e-4

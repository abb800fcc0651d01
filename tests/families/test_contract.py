"""What every family must do, whichever it is."""

import json

import pytest
import torch

from eridiff import families
from eridiff.diffusion.randomness import generator
from eridiff.families.base import SampleRequest
from tests.families.samples import CAPTIONS, CPU_FP32, conditioning


def test_constants_agree_with_the_models(tiny):
    latent, config = tiny.family.latent, tiny.vae.config
    assert latent.channels == config.latent_channels
    assert latent.stride == 2 ** (len(config.block_out_channels) - 1)
    assert latent.scale == config.scaling_factor
    assert latent.shift == (config.shift_factor or 0)
    assert latent.multiple_px % latent.stride == 0


def test_every_part_is_a_component_of_the_base(tiny):
    parts = tiny.family.parts
    for name in (*parts.vae, *parts.text, *parts.denoiser):
        assert tiny.base.files(name)


@pytest.mark.parametrize("name", families.names())
def test_recipes_of_encodings_are_json_with_a_version(name):
    family = families.get(name)
    for recipe in (family.latent_recipe(), family.text_recipe()):
        assert json.loads(json.dumps(recipe)) == recipe
        assert isinstance(recipe["version"], int)


def test_models_are_frozen(tiny):
    models = [tiny.vae, tiny.denoiser, *(encoder.model for encoder in tiny.encoders)]
    assert not any(weight.requires_grad for model in models for weight in model.parameters())
    assert not any(model.training for model in models if model is not tiny.denoiser)
    assert tiny.denoiser.training


def test_pipeline_has_no_text_encoders(tiny):
    assert all(getattr(tiny.pipeline, name) is None for name in tiny.family.parts.text)


def test_a_training_step_has_the_shapes_that_the_seam_says(tiny):
    family, objective = tiny.family, tiny.family.objective
    moments = family.encode_images(tiny.vae, torch.rand(2, 3, 128, 64, generator=generator(0)) * 2 - 1)
    clean = family.latent.scaled(moments.mean)
    noise = torch.stack([objective.draw_noise(tuple(clean.shape[1:]), generator(1, row)) for row in range(2)])
    t = torch.stack([objective.draw_time(generator(2, row), latent_size=(16, 8)) for row in range(2)])
    cond = conditioning(family.encode_prompts(tiny.encoders, CAPTIONS))

    prediction = family.predict(tiny.denoiser, objective.noised(clean, noise, t), t, cond)

    assert moments.mean.shape == moments.logvar.shape == (2, family.latent.channels, 16, 8)
    assert moments.mean.dtype == moments.logvar.dtype == torch.float32
    assert prediction.shape == objective.target(clean, noise, t).shape == clean.shape
    assert torch.isfinite(objective.losses(prediction, clean, noise, t).weighted).all()


def test_gradients_reach_the_input_and_no_frozen_weight(tiny):
    noisy = torch.randn(1, tiny.family.latent.channels, 8, 8, generator=generator(0)).requires_grad_()
    cond = conditioning(tiny.family.encode_prompts(tiny.encoders, CAPTIONS[:1]))
    tiny.family.predict(tiny.denoiser, noisy, torch.tensor([0.5]), cond).sum().backward()
    assert noisy.grad is not None
    assert noisy.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in tiny.denoiser.parameters())


def test_a_row_does_not_see_its_neighbours(tiny):
    noisy = torch.randn(2, tiny.family.latent.channels, 8, 8, generator=generator(0))
    t = torch.tensor([0.2, 0.9])
    prompts = tiny.family.encode_prompts(tiny.encoders, CAPTIONS)
    alone = tiny.family.encode_prompts(tiny.encoders, CAPTIONS[1:])
    torch.testing.assert_close(alone.text, prompts.text[1:])
    torch.testing.assert_close(alone.pooled, prompts.pooled[1:])
    with torch.no_grad():
        both = tiny.family.predict(tiny.denoiser, noisy, t, conditioning(prompts))
        second = tiny.family.predict(tiny.denoiser, noisy[1:], t[1:], conditioning(alone))
    torch.testing.assert_close(second, both[1:])


def test_an_image_depends_on_its_own_seed_alone(tiny):
    prompts = tiny.family.encode_prompts(tiny.encoders, (CAPTIONS[0],) * 2)
    negatives = tiny.family.unconditional(tiny.family.encode_prompts(tiny.encoders, ("",) * 2))
    same, other = tiny.family.sample(tiny.pipeline, prompts, negatives, _request(seeds=(7, 8)))
    (again,) = tiny.family.sample(tiny.pipeline, _first(prompts), _first(negatives), _request(seeds=(7,)))
    assert same.size == (64, 128)
    assert _difference(same, again) <= 1
    assert _difference(same, other) > 1


def test_a_half_precision_denoiser_gives_nearly_the_same(tiny):
    half = tiny.family.load_denoiser(tiny.base, device=CPU_FP32["device"], dtype=torch.bfloat16)
    noisy = torch.randn(1, tiny.family.latent.channels, 8, 8, generator=generator(0))
    cond = conditioning(tiny.family.encode_prompts(tiny.encoders, CAPTIONS[:1]))
    with torch.no_grad():
        exact = tiny.family.predict(tiny.denoiser, noisy, torch.tensor([0.702]), cond)
        rounded = tiny.family.predict(half, noisy, torch.tensor([0.702]), cond)
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


def _request(*, seeds):
    return SampleRequest(seeds=seeds, width_px=64, height_px=128, steps=2, guidance=3.0)


def _first(prompts):
    return type(prompts)(prompts.text[:1], prompts.pooled[:1])


def _difference(one, two):
    pixels = [torch.tensor(list(image.tobytes()), dtype=torch.int16) for image in (one, two)]
    return int((pixels[0] - pixels[1]).abs().max())

"""Images to latents and back, against the VAE and its configuration."""

import copy

import pytest
import torch

from eridiff.diffusion import posterior
from eridiff.diffusion.randomness import generator
from eridiff.families import autoencoder


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(2, 3, 64, 48, generator=generator(0)) * 2 - 1


def test_moments_are_the_posterior_s_own(tiny, pixels):
    moments = tiny.family.encode_images(tiny.vae, pixels)
    with torch.no_grad():
        reference = tiny.reference.vae.encode(pixels).latent_dist
    assert torch.equal(moments.mean, reference.mean)
    assert torch.equal(moments.logvar, reference.logvar)


def test_scaled_latents_are_diffusers_formula(tiny, pixels):
    moments = tiny.family.encode_images(tiny.vae, pixels)
    latents = tiny.family.latent.scaled(posterior.draw(moments.mean, moments.logvar, generator(1)))
    config = tiny.reference.vae.config
    with torch.no_grad():
        draw = tiny.reference.vae.encode(pixels).latent_dist.sample(generator(1))
    reference = (draw - (config.shift_factor or 0)) * config.scaling_factor
    torch.testing.assert_close(latents, reference, rtol=0, atol=1e-6)


def test_decode_undoes_the_scale(tiny, pixels):
    latents = tiny.family.latent.scaled(tiny.family.encode_images(tiny.vae, pixels).mean)
    with torch.no_grad():
        reference = tiny.vae.decode(tiny.vae.encode(pixels).latent_dist.mean).sample
    torch.testing.assert_close(autoencoder.decode(tiny.vae, latents), reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"scaling_factor": 0.5},
        {"scaling_factor": 0.5, "shift_factor": 0.2},
        {"latents_mean": "per channel", "latents_std": "per channel"},
    ],
    ids=["scale", "scale and shift", "per channel"],
)
def test_a_vae_of_another_scale_gives_the_latents_that_its_configuration_asks_for(tiny, pixels, changes):
    channels = tiny.family.latent.channels
    if "latents_mean" in changes:
        changes = {
            "latents_mean": torch.linspace(-1, 1, channels).tolist(),
            "latents_std": torch.linspace(0.5, 2, channels).tolist(),
        }
    vae = copy.deepcopy(tiny.vae)
    vae.register_to_config(**changes)

    moments = tiny.family.encode_images(vae, pixels)
    latents = tiny.family.latent.scaled(posterior.draw(moments.mean, moments.logvar, generator(1)))

    with torch.no_grad():
        draw = vae.encode(pixels).latent_dist.sample(generator(1))
    if "latents_mean" in changes:
        mean, std = (torch.tensor(changes[key]).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std"))
    else:
        mean, std = vae.config.shift_factor or 0.0, 1.0
    torch.testing.assert_close(latents, (draw - mean) * vae.config.scaling_factor / std, rtol=0, atol=1e-5)
    with torch.no_grad():
        reference = vae.decode(draw).sample
    torch.testing.assert_close(autoencoder.decode(vae, latents), reference, rtol=0, atol=1e-4)

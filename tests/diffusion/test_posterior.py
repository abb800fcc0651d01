import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from eridiff.diffusion import posterior
from eridiff.diffusion.randomness import generator


def test_draw_is_diffusers_own():
    parameters = torch.randn(2, 8, 4, 4, generator=generator(0))
    reference = DiagonalGaussianDistribution(parameters)
    drawn = posterior.draw(reference.mean, reference.logvar, generator(1))
    assert torch.equal(drawn, reference.sample(generator(1)))


def test_draw_from_bfloat16_moments_is_float32():
    mean = torch.zeros(1, 4, 2, 2, dtype=torch.bfloat16)
    assert posterior.draw(mean, mean, generator(0)).dtype == torch.float32

from __future__ import annotations

import pytest
import torch

from eridiff.demo.architecture import build_vae
from eridiff.demo.sizes import TINY
from eridiff.demo.vae_training import fold, reconstruction_loss


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_fold_moves_latents_and_keeps_pictures(family: str) -> None:
    torch.manual_seed(0)
    vae = build_vae(family, TINY).eval().requires_grad_(False)
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    before = vae.encode(pixels).latent_dist
    picture = vae.decode(before.mean).sample
    channels = before.mean.shape[1]
    gain, offset = torch.linspace(0.5, 2, channels), torch.zeros(channels)
    fold(vae, gain=gain, offset=offset)
    after = vae.encode(pixels).latent_dist
    assert torch.allclose(after.mean, before.mean * gain.view(1, -1, 1, 1), atol=1e-4)
    assert torch.allclose(after.std, before.std * gain.view(1, -1, 1, 1), atol=1e-4)
    assert torch.allclose(vae.decode(after.mean).sample, picture, atol=1e-4)


def test_fold_with_an_offset_is_exact_where_nothing_pads() -> None:
    torch.manual_seed(0)
    vae = build_vae("sdxl", TINY).eval().requires_grad_(False)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    before = vae.encode(pixels).latent_dist.mean
    picture = vae.decode(before).sample
    fold(vae, gain=torch.full((4,), 2.0), offset=torch.arange(4.0))
    after = vae.encode(pixels).latent_dist.mean
    assert torch.allclose(after, 2 * before + torch.arange(4.0).view(1, 4, 1, 1), atol=1e-4)
    assert torch.allclose(vae.decode(after).sample, picture, atol=1e-4)


def test_reconstruction_loss_is_zero_only_for_the_same_picture() -> None:
    pixels = torch.rand(2, 3, 32, 32)
    assert reconstruction_loss(pixels, pixels) == 0
    assert reconstruction_loss(pixels.flip(1), pixels) > 0.1

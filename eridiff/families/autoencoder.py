"""Diffusers' AutoencoderKL, shared by all families: images to posterior moments, latents to images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eridiff.families.base import LatentSpec, Moments


@torch.no_grad()
def encode(vae: Any, pixels: Tensor, latent: LatentSpec) -> Moments:
    """Moments of `pixels [B, 3, H, W]` in [-1, 1], in the units of the family's own autoencoder.

    Where a base's VAE has another scale or shift, or `latents_mean` and `latents_std` for each channel, the
    moments are such that `latent.scaled` gives what its own configuration asks for.

    Returns:
        Mean and log-variance, each `[B, C, H/8, W/8]` float32 on the VAE's device.
    """
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    shift, scale = _shift_and_scale(vae.config, mean)
    if torch.all(shift == latent.shift) and torch.all(scale == latent.scale):
        return Moments(mean, logvar)
    ratio = scale / latent.scale
    return Moments((mean - shift) * ratio + latent.shift, logvar + 2 * ratio.log())


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pixels `[B, 3, H, W]` about [-1, 1] of scaled latents `[B, C, h, w]`, in the VAE's dtype."""
    latents = latents.to(vae.dtype)
    shift, scale = _shift_and_scale(vae.config, latents)
    return vae.decode(latents / scale + shift, return_dict=False)[0]


def _shift_and_scale(config: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """What the VAE's own configuration says: `z = (x - shift) * scale`, a number or one a channel."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        per_channel = like.new_tensor([mean, std]).view(2, 1, -1, 1, 1)
        return per_channel[0], config.scaling_factor / per_channel[1]
    return like.new_tensor(config.get("shift_factor") or 0.0), like.new_tensor(config.scaling_factor)

"""Diffusers' AutoencoderKL, the autoencoder of all families: images to posterior moments, latents to images.

`load_vae` and `encode_images` are methods: a family takes them by naming them in its class. Importing this
loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eridiff.families.base import LatentSpec, ModelFamily, Moments

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eridiff.families.checkpoints.base import Base


def load_vae(family: ModelFamily, base: Base, *, device: torch.device, dtype: torch.dtype) -> Any:
    """The frozen AutoencoderKL, in evaluation mode; its encoder does not overflow in float16 either."""
    import torch

    from eridiff.families import float16_vae
    from eridiff.families.checkpoints.loading import load_model
    from eridiff.families.vae_attention import use_products

    vae = load_model(base, "vae", device=device, dtype=dtype)
    if dtype == torch.float16:
        float16_vae.shrink(vae.encoder)
    if device.type == "cuda":
        use_products(vae)
    return vae


def encode_images(family: ModelFamily, vae: Any, pixels: Tensor) -> Moments:
    """Posterior moments, each `[B, C, H/8, W/8]` float32, of `pixels [B, 3, H, W]` float32 in [-1, 1]."""
    return encode(vae, pixels, family.latent)


def encode(vae: Any, pixels: Tensor, latent: LatentSpec) -> Moments:
    """Moments of `pixels [B, 3, H, W]` in [-1, 1], in the units of the family's own autoencoder.

    Where a base's VAE has another scale or shift, or `latents_mean` and `latents_std` for each channel, the
    moments are such that `latent.scaled` gives what its own configuration asks for.

    Returns:
        Mean and log-variance, each `[B, C, H/8, W/8]` float32 on the VAE's device.
    """
    import torch

    with torch.no_grad():
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    shift, scale = _shift_and_scale(vae.config)  # on the CPU: to look at them must not wait for the device
    if torch.all(shift == latent.shift) and torch.all(scale == latent.scale):
        return Moments(mean, logvar)
    shift, ratio = shift.to(mean.device), (scale / latent.scale).to(mean.device)
    return Moments((mean - shift) * ratio + latent.shift, logvar + 2 * ratio.log())


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pixels `[B, 3, H, W]` about [-1, 1] of scaled latents `[B, C, h, w]`, in the VAE's dtype."""
    import torch

    latents = latents.to(vae.dtype)
    shift, scale = (number.to(latents) for number in _shift_and_scale(vae.config))
    with torch.no_grad():
        return vae.decode(latents / scale + shift, return_dict=False)[0]


def _shift_and_scale(config: Any) -> tuple[Tensor, Tensor]:
    """What the VAE's own configuration says: `z = (x - shift) * scale`, float32, one or one a channel."""
    import torch

    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        per_channel = torch.tensor([mean, std]).view(2, 1, -1, 1, 1)
        return per_channel[0], config.scaling_factor / per_channel[1]
    return torch.tensor(config.get("shift_factor") or 0.0), torch.tensor(config.scaling_factor)

"""Draws from the autoencoder's posterior, one afresh each time a sample is seen."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
    """One draw `mean + exp(logvar / 2) * noise`, in float32.

    Args:
        mean: unscaled posterior mean of any shape and floating dtype.
        logvar: log-variance, of the same shape.
        generator: CPU generator; the noise is drawn there and moved, so that a device changes nothing.
    """
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    return mean.float() + torch.exp(0.5 * logvar.float()) * noise

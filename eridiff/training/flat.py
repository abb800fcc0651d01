"""Trained parameters as views of flat tensors: an element-wise optimizer then makes one update a group."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

ELEMENTWISE: frozenset[type[torch.optim.Optimizer]] = frozenset(
    {torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD}
)
"""Optimizers that treat every number alike: its update depends on its own history and the settings alone."""


@torch.no_grad()
def flattened(parameters: Iterable[nn.Parameter], gradients: Tensor) -> nn.Parameter:
    """Moves parameters into one flat tensor.

    The parameters stay what they are to their modules: only their memory moves.

    Args:
        parameters: float32, on one device.
        gradients: `[n]` float32, theirs in the same order.

    Returns:
        `[n]` float32, all numbers of the parameters, sharing their memory.
    """
    parameters = list(parameters)
    whole = torch.cat([parameter.detach().flatten() for parameter in parameters])
    parts = torch.split(whole, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part.view(parameter.shape)
    flat = nn.Parameter(whole)
    flat.grad = gradients
    return flat

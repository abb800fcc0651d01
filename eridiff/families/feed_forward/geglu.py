"""Gated feed-forward layers (GEGLU, Shazeer 2020) whose gradient is made in one pass over memory.

    y = h * gelu(g),  [h, g] = x W' + b

The gradients of h and g lie side by side, as the layer's product wants them. A compiler writes such a tensor
by a kernel that works out both for every element and keeps one, which takes three times as long as to read
and to write what there is.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn
from torch.nn.functional import gelu

from eridiff.devices import has_triton


def use_one_pass(denoiser: nn.Module, device: torch.device) -> None:
    """Lets gated layers of a denoiser that will lie on `device` make their gradient so, where kernels run."""
    if has_triton(device):
        for module in denoiser.modules():
            if isinstance(module, GEGLU):
                # One function for all, bound to each: compilers tell blocks apart by what `forward` is.
                module.forward = MethodType(_forward, module)


def gated(wide: Tensor) -> Tensor:
    """`h * gelu(g)` `[..., width]` of h and g side by side `[..., 2 width]`, on a GPU; differentiable."""
    found = _Gated.apply(wide)
    return found  # pyright: ignore[reportReturnType]  # apply has no type


def _forward(layer: Any, hidden_states: Tensor) -> Tensor:
    return gated(layer.proj(hidden_states))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wide: Tensor) -> Tensor:
        ctx.save_for_backward(wide)
        hidden, gate = wide.chunk(2, dim=-1)
        return hidden * gelu(gate)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (wide,) = ctx.saved_tensors
        run = _backward_operator if torch.compiler.is_compiling() else _backward
        return run(gradients[0], wide)


def _backward(gradient: Tensor, wide: Tensor) -> Tensor:
    from eridiff.families.feed_forward.kernels import geglu_gradient

    rows = gradient.reshape(-1, gradient.shape[-1]).contiguous()
    return geglu_gradient(rows, wide.reshape(-1, wide.shape[-1]).contiguous()).view(wide.shape)


_backward_operator = torch.library.custom_op("eridiff::geglu_backward", _backward, mutates_args=())


@_backward_operator.register_fake
def _(gradient: Tensor, wide: Tensor) -> Tensor:
    return torch.empty_like(wide, memory_format=torch.contiguous_format)

"""Weights in 8 bits with a scale a row, as LLM.int8 keeps them (Dettmers et al. 2022).

bitsandbytes' kernel for it takes float16 alone, which holds less than bfloat16 does; the quantiser is three
lines of torch. Products are taken in the input's precision: its bfloat16 holds every code exactly, so that
nothing is lost but in the codes themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_MOST = 127


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes `[out, in]` int8 and scales `[out]` bfloat16 of a weight `[out, in]`.

    The scales are rounded before codes are made, so that rounding them costs nothing.
    """
    largest = torch.linalg.vector_norm(weight, torch.inf, dim=1, dtype=torch.float32)
    scales = (largest / _MOST).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
    codes = (weight / scales.float()[:, None]).round_().clamp_(-_MOST, _MOST)
    return codes.to(torch.int8), scales


def dense(codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """The weight that they stand for, float32."""
    return codes.float() * scales.float()[:, None]


def product(x: Tensor, codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """`x @ weight.T` for x `[..., in]`, in x's dtype; differentiable in x alone."""
    return _Product.apply(x, codes, scales)  # pyright: ignore[reportReturnType]


class _Product(torch.autograd.Function):
    """Keeps the codes for the backward pass, never a dense weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scales)
        return functional.linear(x, codes.to(x.dtype)) * scales

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        codes, scales = ctx.saved_tensors
        scaled = gradients[0] * scales
        return scaled @ codes.to(scaled.dtype), None, None

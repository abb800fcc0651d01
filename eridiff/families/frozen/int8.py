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


def forward(rows: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """`rows @ weight.T + bias` for rows `[n, in]`, in their dtype; not differentiable."""
    found, scales = functional.linear(rows, codes.to(rows.dtype)), scales.to(rows.dtype)
    return found.mul_(scales) if bias is None else torch.addcmul(bias, found, scales)


def backward(gradient: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """`gradient @ weight` for a gradient `[n, out]` of `forward`'s output, in its dtype."""
    return (gradient * scales.to(gradient.dtype)) @ codes.to(gradient.dtype)


class _Product(torch.autograd.Function):
    """Keeps the codes for the backward pass, never a dense weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scales)
        run = _forward_operator if torch.compiler.is_compiling() else forward
        return run(x.flatten(0, -2), codes, scales, None).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        run = _backward_operator if torch.compiler.is_compiling() else backward
        found = run(gradient.flatten(0, -2), *ctx.saved_tensors)
        return found.view(*gradient.shape[:-1], -1), None, None


# Operators of their own for compilers: Inductor of torch 2.11 takes the lines above for a product of its own
# (`_weight_int8pack_mm`), whose result on a GPU has lost the shape of x.
_forward_operator = torch.library.custom_op("eridiff::int8_linear", forward, mutates_args=())
_backward_operator = torch.library.custom_op("eridiff::int8_linear_backward", backward, mutates_args=())


@_forward_operator.register_fake
def _(rows: Tensor, codes: Tensor, scales: Any, bias: Any) -> Tensor:
    return rows.new_empty(rows.shape[0], codes.shape[0])


@_backward_operator.register_fake
def _(gradient: Tensor, codes: Tensor, scales: Any) -> Tensor:
    return gradient.new_empty(gradient.shape[0], codes.shape[1])

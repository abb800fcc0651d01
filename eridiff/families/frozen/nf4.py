"""Weights in 4 bits, normal floats with a scale to 64 of them, as QLoRA keeps them (Dettmers et al. 2023).

Codes and kernels are bitsandbytes', on the GPU and on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from eridiff.errors import ModelError
from eridiff.families.frozen.keep import NF4_BLOCK


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes `[out * in / 2, 1]` uint8 and scales `[out * in / 64]` float32 of a weight `[out, in]`.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.functional import quantize_4bit
    except ImportError as error:
        raise ModelError(
            f"nf4 weights need bitsandbytes: {error}",
            where="model.quantize",
            fix="pip install 'bitsandbytes>=0.46', or set model.quantize: int8",
        ) from error
    codes, state = quantize_4bit(weight.float().contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
    return codes, state.absmax


def dense(codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """The weight that they stand for, float32."""
    return _dense(codes, scales, shape, torch.float32)


def product(x: Tensor, codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """`x @ weight.T` for x `[..., in]`, in x's dtype; differentiable in x alone."""
    return _Product.apply(x, codes, scales, shape)  # pyright: ignore[reportReturnType]


class _Product(torch.autograd.Function):
    """Makes the dense weight anew in the backward pass instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.shape = shape
        return functional.linear(x, _dense(codes, scales, shape, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        codes, scales = ctx.saved_tensors
        (gradient,) = gradients
        return gradient @ _dense(codes, scales, ctx.shape, gradient.dtype), None, None, None


def _dense(codes: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    # The registered operator, not bitsandbytes' wrapper: compilers know it by shapes.
    operator = torch.ops.bitsandbytes.dequantize_4bit
    return operator(codes, scales, NF4_BLOCK, "nf4", list(shape), dtype)

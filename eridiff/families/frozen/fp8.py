"""Products of 8-bit floats: e4m3 weights with a scale a row, inputs and gradients scaled as they come.

For weights `W = diag(s) Q`, the input's gradient `dY W = (dY diag(s)) Q` is a product with the same codes:
the scales move into the other factor before that is rounded. So both passes are `torch._scaled_mm`, and the
backward pass is that of the very weights that the forward pass multiplied by.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from eridiff.devices import has_triton
from eridiff.errors import ModelError

_CODES = torch.float8_e4m3fn
_MOST = torch.finfo(_CODES).max
_FEWEST_ROWS = 16
"""Inputs of fewer rows, such as a time's embedding, are multiplied by the dense weight: there is no time to
gain."""
_CAPABILITY = (8, 9)


def refuse_without_hardware(device: torch.device) -> None:
    """Raise ModelError on a GPU that has no fp8 products; nothing else is done in their place."""
    if device.type == "cpu":  # there the same numbers come of slower products
        return
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if found is None or found < _CAPABILITY:
        raise ModelError(
            "this device has no fp8 products",
            where="model.quantize",
            found=device.type if found is None else f"compute capability {found[0]}.{found[1]}",
            wanted="8.9 or more: Ada, Hopper, Blackwell",
            fix="set model.quantize: int8",
        )


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes `[out, in]`, e4m3 seen as uint8, and scales `[out]` float32 of a weight `[out, in]`."""
    codes, scales = _rounded(weight)
    # As bytes: a float8 parameter would make peft round its factors to float8, too.
    return codes.view(torch.uint8), scales[:, 0].contiguous()


def dense(codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """The weight that they stand for, float32."""
    return codes.view(_CODES).float() * scales[:, None]


def product(x: Tensor, codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """`x @ weight.T` for x `[..., in]`, in x's dtype; differentiable in x alone."""
    return _Product.apply(x, codes, scales)  # pyright: ignore[reportReturnType]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scales)
        return forward(x.flatten(0, -2), codes, scales, None).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        found = backward(gradient.flatten(0, -2), *ctx.saved_tensors)
        return found.view(*gradient.shape[:-1], -1), None, None


def forward(rows: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """`rows @ weight.T + bias` for rows `[n, in]`, in their dtype; not differentiable."""
    if rows.shape[0] < _FEWEST_ROWS:
        return functional.linear(rows, dense(codes, scales, _sides(codes)).to(rows.dtype), bias)
    return _multiplied(_rounded(rows), codes.view(_CODES).t(), scales[None], bias, rows.dtype)


def backward(gradient: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """`gradient @ weight` for a gradient `[n, out]` of `forward`'s output, in its dtype."""
    if gradient.shape[0] < _FEWEST_ROWS:
        return gradient @ dense(codes, scales, _sides(codes)).to(gradient.dtype)
    # The second factor must lie column by column: its bytes are transposed here, rather than kept twice.
    right = _transposed(codes).view(_CODES).t()
    ones = scales.new_ones(1, codes.shape[1])
    return _multiplied(_rounded(gradient, scales), right, ones, None, gradient.dtype)


def _multiplied(
    left: tuple[Tensor, Tensor], right: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The product of rounded rows, with their scales, and `right * scales`, plus a bias."""
    codes, own = left
    if codes.device.type == "cpu":  # where torch 2.11 has no product of rows with scales of their own
        found = codes.float() @ right.float() * own * scales
        return (found if bias is None else found + bias).to(dtype)
    found = torch._scaled_mm(
        codes,
        right,
        scale_a=own,
        scale_b=scales,
        bias=None if bias is None else bias.bfloat16(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,  # sums in fewer bits are far more exact than the factors, and a quarter faster
    )
    return found.to(dtype)


def _rounded(rows: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes and float32 scales `[n, 1]` of rows `[n, k]` times factors `[k]`.

    The largest of each row gets the largest code.
    """
    if _by_triton(rows):
        from eridiff.families.frozen import kernels

        return kernels.rounded_rows(rows, factors, _CODES)
    rows = rows.contiguous() if factors is None else rows * factors
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True, dtype=torch.float32)
    scales = (largest / _MOST).clamp(min=torch.finfo(torch.float32).tiny)
    return (rows * scales.reciprocal()).clamp_(-_MOST, _MOST).to(_CODES), scales


def _transposed(codes: Tensor) -> Tensor:
    if _by_triton(codes):
        from eridiff.families.frozen import kernels

        return kernels.transposed(codes)
    return codes.t().contiguous()


def _by_triton(tensor: Tensor) -> bool:
    """Whether Triton has kernels for it; a compiler at work makes its own."""
    return not torch.compiler.is_compiling() and has_triton(tensor.device) and tensor.stride(-1) == 1


def _sides(codes: Tensor) -> tuple[int, int]:
    return codes.shape[0], codes.shape[1]

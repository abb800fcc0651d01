"""The products of a linear layer with LoRA, as one operator that compilers leave whole.

    y = x W' + b,  then for each part i of its columns:  y_i += s_i (x D_i') U_i'

A compiler that sees these products one by one writes the LoRA's to memory, reads them again and adds. Here
they are added where the base's product lies, by a kernel made for few inner columns. Several layers of one
input (query, key and value) are one: their weights one below the other, and so are their `down`s, so that the
input is read once for all. W may be codes, of int8 or of fp8, whose products take the input's rows rounded
once for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eridiff.devices import has_triton
from eridiff.lora.base_product import BaseProduct


def lora_linear(
    x: Tensor, base: BaseProduct, down: Tensor, ups: Sequence[Tensor], scales: Sequence[float]
) -> Tensor:
    """The layers' outputs side by side, `[..., out]`; differentiable in x, `down` and `ups`.

    Args:
        x: `[..., in]`, of the dtype of all others but codes.
        base: frozen.
        down: `[rank, in]`; the layers' one below the other.
        ups: one `[out_i, rank_i]` a layer.
        scales: what each layer's change is multiplied by.
    """
    found = _Products.apply(x, base.weight, base.scales, base.bias, down, list(scales), *ups)
    return found  # pyright: ignore[reportReturnType]  # apply has no type


class _Products(torch.autograd.Function):
    # An operator's own call costs as much as a small product, so that only compilers get to see it.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        weight_scales: Tensor | None,
        bias: Tensor | None,
        down: Tensor,
        scales: list[float],
        *ups: Tensor,
    ) -> Tensor:
        run = _forward_operator if torch.compiler.is_compiling() else _forward
        found, narrow = run(x, weight, weight_scales, bias, down, list(ups), scales)
        ctx.save_for_backward(x, narrow, weight, weight_scales, down, *ups)
        ctx.scales = scales
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow, weight, weight_scales, down, *ups = ctx.saved_tensors
        of_input = ctx.needs_input_grad[0]
        run = _backward_operator if torch.compiler.is_compiling() else _backward
        of_x, of_down, *of_ups = run(
            gradients[0], x, narrow, weight, weight_scales, down, ups, ctx.scales, of_input
        )
        return of_x if of_input else None, None, None, None, of_down, None, *of_ups


def _forward(
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor | None,
    bias: Tensor | None,
    down: Tensor,
    ups: list[Tensor],
    scales: list[float],
) -> tuple[Tensor, Tensor]:
    """The output and `x D'`, `[rows, rank]`."""
    rows = x.reshape(-1, x.shape[-1])
    narrow = rows @ down.t()
    found = BaseProduct(weight, weight_scales, bias).forward(rows)
    for part, inner, up, scale in zip(*_parts(found, narrow, ups), ups, scales, strict=True):
        _add_low_rank_(part, inner, up, scale)
    return found.view(*x.shape[:-1], weight.shape[0]), narrow


def _backward(
    gradient: Tensor,
    x: Tensor,
    narrow: Tensor,
    weight: Tensor,
    weight_scales: Tensor | None,
    down: Tensor,
    ups: list[Tensor],
    scales: list[float],
    of_input: bool,
) -> list[Tensor]:
    """Gradients of x (empty unless asked for), of `down` and of each of `ups`."""
    rows, out = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    inner = torch.empty_like(narrow)
    of_ups = [torch.empty_like(up) for up in ups]
    of_parts = zip(*_parts(out, narrow, ups), inner.split(_ranks(ups), dim=1), strict=True)
    for (part, hidden, of_hidden), up, of_up, scale in zip(of_parts, ups, of_ups, scales, strict=True):
        torch.mm(part, up, out=of_hidden)
        torch.mm(part.t(), hidden, out=of_up)
        if scale != 1:
            of_hidden.mul_(scale)
            of_up.mul_(scale)
    of_x = x.new_empty(0)
    if of_input:
        of_rows = BaseProduct(weight, weight_scales, None).backward(out)
        _add_low_rank_(of_rows, inner, down.t(), 1)
        of_x = of_rows.view(x.shape)
    return [of_x, inner.t() @ rows, *of_ups]


def _add_low_rank_(wide: Tensor, narrow: Tensor, up: Tensor, scale: float) -> None:
    """Adds `scale * narrow @ up.T`."""
    if wide.dtype in (torch.bfloat16, torch.float16) and has_triton(wide.device):
        from eridiff.lora.kernels import add_low_rank_

        add_low_rank_(wide, narrow, up, scale)
    else:
        wide.addmm_(narrow, up.t(), alpha=scale)


_forward_operator = torch.library.custom_op("eridiff::lora_linear", _forward, mutates_args=())
_backward_operator = torch.library.custom_op("eridiff::lora_linear_backward", _backward, mutates_args=())


@_forward_operator.register_fake
def _(
    x: Tensor, weight: Tensor, weight_scales: Any, bias: Any, down: Tensor, ups: Any, scales: Any
) -> tuple[Tensor, Tensor]:
    num_rows = x[..., 0].numel()
    return x.new_empty(*x.shape[:-1], weight.shape[0]), x.new_empty(num_rows, down.shape[0])


@_backward_operator.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    narrow: Any,
    weight: Any,
    weight_scales: Any,
    down: Tensor,
    ups: Any,
    scales: Any,
    of_input: bool,
) -> list[Tensor]:
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format) if of_input else x.new_empty(0)
    return [of_x, torch.empty_like(down), *(torch.empty_like(up) for up in ups)]


def _ranks(ups: Sequence[Tensor]) -> list[int]:
    return [up.shape[1] for up in ups]


def _parts(wide: Tensor, narrow: Tensor, ups: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Each layer's columns of the outputs `[rows, out]` and of `[rows, rank]`, as views."""
    return wide.split([up.shape[0] for up in ups], dim=1), narrow.split(_ranks(ups), dim=1)

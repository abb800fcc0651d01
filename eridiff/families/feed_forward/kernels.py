"""The gradient of GEGLU in one pass over memory; Triton compiles this."""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]  # comes with torch for GPUs
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

_CHUNK = 1024


def geglu_gradient(gradient: Tensor, wide: Tensor) -> Tensor:
    """The gradient of `h * gelu(g)`, of h and g side by side.

    Args:
        gradient: of the result, `[n, width]`, row by row; of any floating dtype.
        wide: h and g, `[n, 2 width]`, row by row, of its dtype.

    Returns:
        `[n, 2 width]`, worked out in float32.
    """
    num_rows, width = gradient.shape
    found = torch.empty_like(wide)
    kernel: Any = _geglu_gradient
    kernel[(num_rows, triton.cdiv(width, _CHUNK))](gradient, wide, found, width, CHUNK=_CHUNK, num_warps=4)
    return found


@triton.jit
def _geglu_gradient(gradient, wide, found, width, CHUNK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    inside = column < width
    given = tl.load(gradient + row * width + column, mask=inside, other=0.0).to(tl.float32)
    hidden = tl.load(wide + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(wide + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    below = 0.5 + 0.5 * tl.erf(gate * 0.7071067811865476)  # the normal distribution's, and its density
    density = tl.exp(-0.5 * gate * gate) * 0.3989422804014327
    of_hidden, of_gate = given * gate * below, given * hidden * (below + gate * density)
    tl.store(found + row * 2 * width + column, of_hidden.to(found.dtype.element_ty), mask=inside)
    tl.store(found + row * 2 * width + width + column, of_gate.to(found.dtype.element_ty), mask=inside)

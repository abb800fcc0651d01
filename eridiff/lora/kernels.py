"""Changes of low rank, added at the rate of memory on a GPU; Triton compiles what stands here."""

from __future__ import annotations

from typing import Any

import triton  # pyright: ignore[reportMissingImports]  # comes with torch for GPUs
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

_ROWS, _COLUMNS, _WARPS = 32, 128, 4
"""A tile; larger ones are slower, and at these sizes one reaches 85 % of the rate of a plain copy."""


def add_low_rank_(wide: Tensor, narrow: Tensor, up: Tensor, scale: float) -> None:
    """Adds `scale * narrow @ up.T` to `wide` where it lies: one reading and one writing of it.

    cuBLAS takes half as long again, and more between other kernels: its own are made for many inner columns.

    Args:
        wide: `[n, m]` bfloat16 or float16, each row's elements side by side.
        narrow: `[n, rank]`, of its dtype.
        up: `[m, rank]`, of its dtype; any strides.
        scale: what the product, summed in float32, is multiplied by.
    """
    (num_rows, num_columns), rank = wide.shape, narrow.shape[1]
    grid = (triton.cdiv(num_rows, _ROWS), triton.cdiv(num_columns, _COLUMNS))
    inner = max(16, triton.next_power_of_2(rank))
    strides = (wide.stride(0), narrow.stride(0), narrow.stride(1), up.stride(0), up.stride(1))
    kernel: Any = _add_low_rank
    kernel[grid](
        wide, narrow, up, scale, num_rows, num_columns, rank, *strides,
        ROWS=_ROWS, COLUMNS=_COLUMNS, INNER=inner, num_warps=_WARPS,
    )  # fmt: skip


@triton.jit
def _add_low_rank(
    wide, narrow, up, scale, num_rows, num_columns, rank,
    wide_row, narrow_row, narrow_inner, up_row, up_inner,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, INNER)
    of_rows, of_columns, of_inner = row < num_rows, column < num_columns, inner < rank
    places = wide + row[:, None].to(tl.int64) * wide_row + column[None, :]
    inside = of_rows[:, None] & of_columns[None, :]
    left = tl.load(
        narrow + row[:, None].to(tl.int64) * narrow_row + inner[None, :] * narrow_inner,
        mask=of_rows[:, None] & of_inner[None, :],
        other=0.0,
    )
    right = tl.load(
        up + column[None, :] * up_row + inner[:, None] * up_inner,
        mask=of_inner[:, None] & of_columns[None, :],
        other=0.0,
    )
    before = tl.load(places, mask=inside, other=0.0)
    after = before.to(tl.float32) + scale * tl.dot(left, right)
    tl.store(places, after.to(before.dtype), mask=inside)

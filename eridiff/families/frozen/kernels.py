"""Rounding to 8-bit floats and turning bytes round, each in one pass over memory; Triton compiles this."""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]  # comes with torch for GPUs
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

_SIDE, _CHUNK = 128, 1024


def rounded_rows(rows: Tensor, factors: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes `[n, k]` and float32 scales `[n, 1]` of rows `[n, k]` times factors `[k]`.

    The largest of each row gets the largest code of `dtype`, a float8.
    """
    num_rows, width = rows.shape
    codes = torch.empty(num_rows, width, dtype=dtype, device=rows.device)
    scales = torch.empty(num_rows, 1, dtype=torch.float32, device=rows.device)
    limits = torch.finfo(torch.float32).tiny, torch.finfo(dtype).max
    kernel: Any = _rounded_rows
    kernel[(num_rows,)](
        rows, rows if factors is None else factors, codes, scales, width, rows.stride(0), *limits,
        SCALED=factors is not None, CHUNK=_CHUNK, num_warps=4,
    )  # fmt: skip
    return codes, scales


def transposed(codes: Tensor) -> Tensor:
    """Bytes `[n, k]` as `[k, n]`, both row by row."""
    height, width = codes.shape
    found = codes.new_empty(width, height)
    kernel: Any = _transposed
    grid = (triton.cdiv(height, _SIDE), triton.cdiv(width, _SIDE))
    kernel[grid](codes, found, height, width, codes.stride(0), SIDE=_SIDE, num_warps=4)
    return found


@triton.jit
def _rounded_rows(
    rows, factors, codes, scales, width, stride, tiny, most, SCALED: tl.constexpr, CHUNK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, CHUNK)
    largest = tl.zeros((CHUNK,), dtype=tl.float32)
    for start in range(0, width, CHUNK):
        values = _values(rows + row * stride, factors, start + column, width, SCALED)
        largest = tl.maximum(largest, tl.abs(values))
    scale = tl.maximum(tl.div_rn(tl.max(largest, axis=0), most), tiny)
    tl.store(scales + row, scale)
    inverse = tl.div_rn(1.0, scale)
    for start in range(0, width, CHUNK):  # from the cache this time
        values = _values(rows + row * stride, factors, start + column, width, SCALED)
        scaled = tl.clamp(values * inverse, -most, most).to(codes.dtype.element_ty)
        tl.store(codes + row * width + start + column, scaled, mask=start + column < width)


@triton.jit
def _values(row, factors, column, width, SCALED: tl.constexpr):
    values = tl.load(row + column, mask=column < width, other=0.0).to(tl.float32)
    if SCALED:
        values *= tl.load(factors + column, mask=column < width, other=0.0)
    return values


@triton.jit
def _transposed(codes, found, height, width, stride, SIDE: tl.constexpr):
    row = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    column = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    inside = (row < height)[:, None] & (column < width)[None, :]
    tile = tl.load(codes + row[:, None].to(tl.int64) * stride + column[None, :], mask=inside)
    tl.store(
        found + column[:, None].to(tl.int64) * height + row[None, :], tl.trans(tile), mask=tl.trans(inside)
    )

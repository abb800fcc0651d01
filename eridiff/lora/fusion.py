"""LoRA of layers that original models keep in one weight: put together and taken apart without error."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from eridiff.families.checkpoints.keys import Link
from eridiff.lora.adapters import Adapter


def fuse(link: Link, parts: Mapping[str, Adapter]) -> Adapter:
    """The adapter of an original module from those of its diffusers modules, some of which may be missing.

    The `down`s are laid one below the other and the `up`s on the diagonal, so that the rank is the sum of the
    ranks; alpha grows with it, so that the scale stays.
    """
    if len(link.diffusers) == 1:
        return _swapped(link, parts[link.diffusers[0]])
    present = [(index, parts[name]) for index, name in enumerate(link.diffusers) if name in parts]
    scales = {adapter.scale for _, adapter in present}
    if len(scales) > 1:
        present = [(index, adapter.folded()) for index, adapter in present]
    ranks = [adapter.rank for _, adapter in present]
    index, first = present[0]
    heights = link.heights(_total(link, index, first.up.shape[0]))
    up = first.up.new_zeros(sum(heights), sum(ranks))
    for (index, adapter), stop in zip(present, accumulate(ranks), strict=True):
        top = sum(heights[:index])
        up[top : top + heights[index], stop - adapter.rank : stop] = adapter.up
    alpha = sum(adapter.alpha for _, adapter in present)
    return Adapter(torch.cat([adapter.down for _, adapter in present]), up, alpha)


def split(link: Link, fused: Adapter) -> dict[str, Adapter]:
    """The adapters of the diffusers modules in an original module's.

    Where `up` has its parts on the diagonal, as `fuse` writes it, each gets its own rank back, and those that
    take no part are left out; otherwise each keeps the whole of `down`.
    """
    if len(link.diffusers) == 1:
        return {link.diffusers[0]: _swapped(link, fused)}
    ups = fused.up.split(link.heights(fused.up.shape[0]))
    columns = _diagonal(ups, fused.rank)
    if columns is None:
        columns = [(0, fused.rank)] * len(ups)
    return {
        name: Adapter(
            fused.down[start:stop].contiguous(),
            up[:, start:stop].contiguous(),
            fused.scale * (stop - start),
        )
        for name, up, (start, stop) in zip(link.diffusers, ups, columns, strict=True)
        if stop > start
    }


def _diagonal(ups: tuple[Tensor, ...], rank: int) -> list[tuple[int, int]] | None:
    """Columns of each part if no two parts share one, else none."""
    used = [up.ne(0).any(dim=0) for up in ups]
    width, rest = divmod(rank, len(ups))
    if not rest:
        equal = [(index * width, (index + 1) * width) for index in range(len(ups))]
        if all(_inside(mask, *columns) for mask, columns in zip(used, equal, strict=True)):
            return equal
    return _consecutive([mask.nonzero().flatten().tolist() for mask in used], rank)


def _inside(mask: Tensor, start: int, stop: int) -> bool:
    return not mask[:start].any() and not mask[stop:].any()


def _consecutive(used: list[list[int]], rank: int) -> list[tuple[int, int]] | None:
    """Runs of columns that follow each other and together are all of them; parts without any get none."""
    spans: list[tuple[int, int]] = []
    end = 0
    last = max((index for index, columns in enumerate(used) if columns), default=-1)
    for index, columns in enumerate(used):
        if not columns:
            spans.append((end, end))
            continue
        if columns[0] < end:
            return None
        following = [later[0] for later in used[index + 1 :] if later]
        stop = rank if index == last else min(following)
        if columns[-1] >= stop:
            return None
        spans.append((end, stop))
        end = stop
    return spans if last >= 0 else None


def _swapped(link: Link, adapter: Adapter) -> Adapter:
    """Halves of the rows exchanged, where original and diffusers disagree on scale and shift."""
    if link.form != "swapped":
        return adapter
    return Adapter(adapter.down, adapter.up.roll(adapter.up.shape[0] // 2, dims=0), adapter.alpha)


def _total(link: Link, index: int, height: int) -> int:
    """Rows of the original weight, of which part `index` has `height`."""
    shares = link.shares or (1,) * len(link.diffusers)
    return height // shares[index] * sum(shares)

"""What a denoiser's forward pass leaves for its backward pass, in bytes, from shapes alone. No torch.

The unit is one activation of a block, `[B, tokens, width]` in bfloat16. How many of them autograd keeps is
counted once for each kind of block, on the meta device at the published sizes (a test counts again).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eridiff.families.frozen.keep import Shape

ITEM_BYTES = 2
"""Bytes of a bfloat16 number."""


@dataclass(frozen=True)
class Workload:
    """A batch: its samples, and the height and width of its latents in cells."""

    batch: int
    height: int
    width: int


@dataclass(frozen=True)
class BlockBytes:
    """What a block is given, which stays where it is recomputed, and what it keeps where it is not."""

    given: int
    kept: int


@dataclass(frozen=True)
class Activations:
    """Bytes of a whole forward pass: of each repeated block by name, and outside of them."""

    blocks: Mapping[str, BlockBytes]
    outside: int

    def peak(self, recomputed: frozenset[str]) -> int:
        """Bytes at the turn from forward to backward, with one recomputed block at work."""
        given = sum(self.blocks[name].given for name in recomputed)
        kept = sum(block.kept for name, block in self.blocks.items() if name not in recomputed)
        working = max((self.blocks[name].kept for name in recomputed), default=0)
        return self.outside + given + kept + working


def transformer_block(name: str, shapes: Mapping[str, Shape], *, rows: int, units: float) -> BlockBytes:
    """A transformer block's, for `rows` tokens of all samples together, that keeps `units` activations."""
    unit = rows * width_of(name, shapes) * ITEM_BYTES
    return BlockBytes(given=unit, kept=round(units * unit))


def width_of(name: str, shapes: Mapping[str, Shape]) -> int:
    """The width of a transformer block: what its first attention's queries are made of."""
    keys = (f"{name}.attn.to_q.weight", f"{name}.attn1.to_q.weight")
    return next(shapes[key][1] for key in keys if key in shapes)

"""What is kept in fewer bits, and what away from the device: pure functions of names. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Quantization = Literal["none", "int8", "nf4", "fp8"]
Shape = tuple[int, ...]

NF4_BLOCK = 64
"""Weights that share a scale in nf4."""
_FP8_STEP = 16
"""Sides of a matrix that fp8 products take are multiples of this."""


@dataclass(frozen=True)
class Keep:
    """How a denoiser's frozen weights lie in memory.

    Attributes:
        quantize: what the linear layers of its repeated blocks are kept in; `none` leaves them as they are.
        offload: share of its repeated blocks whose weights stay in system memory, 0 to 1.
    """

    quantize: Quantization = "none"
    offload: float = 0.0


PLAIN = Keep()
"""Everything on the device, in the precision asked for."""


def block_of(name: str, blocks: str) -> str | None:
    """The repeated block that a tensor or module belongs to; none where it stands outside.

    Args:
        name: dotted, such as `transformer_blocks.3.attn.to_q.weight`.
        blocks: regular expression of blocks' names.
    """
    found = re.match(rf"(?:{blocks})(?=\.|$)", name) if blocks else None
    return found[0] if found else None


def blocks_of(names: Iterable[str], blocks: str) -> tuple[str, ...]:
    """The repeated blocks among names, in their order, each once."""
    return tuple(dict.fromkeys(block for name in names if (block := block_of(name, blocks))))


def away(blocks: Sequence[str], share: float) -> frozenset[str]:
    """The blocks that stay in system memory: spread evenly, so that those between hide the transfers."""
    count = min(math.ceil(share * len(blocks) - 1e-9), len(blocks))
    return frozenset(blocks[index * len(blocks) // count] for index in range(count))


def is_quantised(name: str, shape: Shape, blocks: str, quantize: Quantization) -> bool:
    """Whether a tensor is a linear layer's weight that is kept in fewer bits.

    What stands outside the repeated blocks, embeddings of time and text and the last projection, is a few
    percent of a denoiser, and most sensitive: it stays as it is. So do norms, biases and convolutions.
    """
    if quantize == "none" or len(shape) != 2 or not name.endswith(".weight") or not block_of(name, blocks):
        return False
    return quantize != "fp8" or all(side % _FP8_STEP == 0 for side in shape)


def kept_bytes(shape: Shape, quantize: Quantization) -> int:
    """Bytes of a quantised weight `[out, in]` with its scales."""
    count = math.prod(shape)
    match quantize:
        case "int8":
            return count + 2 * shape[0]
        case "fp8":
            return count + 4 * shape[0]
        case "nf4":
            return -(-count // 2) + 4 * -(-count // NF4_BLOCK)
        case "none":
            raise ValueError("it is not quantised")


def weight_bytes(
    shapes: Mapping[str, Shape], blocks: str, keep: Keep, *, item_bytes: int
) -> dict[str | None, int]:
    """Bytes of the frozen weights of each repeated block; under None, of all that stands outside.

    Args:
        shapes: name to shape of the denoiser's tensors.
        blocks: regular expression of blocks' names.
        keep: how they are kept.
        item_bytes: bytes of a number that is not quantised.
    """
    found: dict[str | None, int] = {}
    for name, shape in shapes.items():
        quantised = is_quantised(name, shape, blocks, keep.quantize)
        size = kept_bytes(shape, keep.quantize) if quantised else item_bytes * math.prod(shape)
        block = block_of(name, blocks)
        found[block] = found.get(block, 0) + size
    return found

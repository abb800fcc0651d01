"""Peak memory of a training on its device, predicted from shapes and settings alone. No torch.

    peak = resident weights + two blocks on the way + LoRA with gradients and start + optimizer + average
         + activations at the turn from forward to backward + one dense copy of the largest quantised weight

Of blocks that are spread over a machine's cards, a card's own part is resident. Activations are counted in
`families.activations`. What a GPU takes for itself before any tensor is in `CONTEXT_BYTES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from eridiff.families.activations import Workload
from eridiff.families.frozen.keep import Keep, Shape, away, blocks_of, is_quantised, weight_bytes
from eridiff.lora.targets import Layer, choose

if TYPE_CHECKING:
    from eridiff.families.base import ModelFamily
    from eridiff.recipe import Network, Recipe, Train

CONTEXT_BYTES = 600_000_000
"""What CUDA, its libraries and their kernels take of a card."""
_STATE_BYTES: Mapping[str, float] = {"sgd": 4, "adafactor": 0.1, "adamw8bit": 2.1, "prodigy": 16}
"""Bytes that optimizers keep for a trained number; others keep two float32 numbers, as Adam does."""
_VISITING = 2
"""Blocks that are on the device at once where they stay away: one computes, the next one comes."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device, by what they are for."""

    base: int
    lora: int
    optimizer: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """Of all together."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{field.name} {getattr(self, field.name) / 1e9:.1f}" for field in fields(self))
        return f"{self.total / 1e9:.1f} GB ({parts})"


def footprint(
    recipe: Recipe,
    family: ModelFamily,
    shapes: Mapping[str, Shape],
    work: Workload,
    *,
    checkpointed: bool,
    num_cards: int = 1,
) -> Footprint:
    """The predicted peak of a recipe's training, on each of its cards.

    Args:
        recipe: its settings.
        family: the recipe's.
        shapes: name to shape of the denoiser's tensors.
        work: its largest batch.
        checkpointed: whether activations of all blocks are recomputed; those of blocks that stay away are.
        num_cards: of one machine, at least 1, over which `train.shard_base` spreads the blocks; with one, or
            without that setting, it changes nothing.
    """
    train, blocks = recipe.train, family.checkpoint.blocks
    sharded = train.shard_base and num_cards > 1
    keep = Keep(recipe.model.quantize, 1.0 if sharded else train.offload)
    item_bytes = 4 if train.dtype == "fp32" else 2
    weights = weight_bytes(shapes, blocks, keep, item_bytes=item_bytes)
    names = blocks_of(shapes, blocks)
    absent = away(names, keep.offload)
    sizes = [weights[block] for block in absent]
    trained = num_trained(shapes, recipe.network, family)
    activations = family.activations(shapes, work)
    return Footprint(
        base=sum(size for block, size in weights.items() if block not in absent)
        + (-(-sum(sizes) // num_cards) if sharded else 0)
        + min(_VISITING, len(sizes)) * max(sizes, default=0),
        lora=lora_bytes(recipe.network, trained),
        optimizer=state_bytes(train, trained) + average_bytes(train, trained),
        activations=activations.peak(frozenset(names) if checkpointed else absent) * item_bytes // 2,
        workspace=item_bytes
        * max(
            (
                math.prod(shape)
                for name, shape in shapes.items()
                if is_quantised(name, shape, blocks, keep.quantize)
            ),
            default=0,
        ),
    )


def lora_bytes(network: Network, num_trained: int) -> int:
    """Bytes of so many trained numbers with their gradients, and with their start where it counts."""
    return (12 if network.starts_from_weights else 8) * num_trained


def state_bytes(train: Train, num_trained: int) -> int:
    """Bytes of the optimizer's state for so many trained numbers; it takes them in its first step."""
    return round(_STATE_BYTES.get(train.optimizer, 8) * num_trained)


def average_bytes(train: Train, num_trained: int) -> int:
    """Bytes of the moving average of so many trained numbers, if there is one."""
    return 4 * num_trained if train.ema_config.use_ema else 0


def num_trained(shapes: Mapping[str, Shape], network: Network, family: ModelFamily) -> int:
    """Numbers in the denoiser's LoRA."""
    kinds: dict[int, Layer] = {2: "linear", 4: "conv"}
    layers: dict[str, Layer] = {
        name.removesuffix(".weight"): kinds[len(shape)]
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) in kinds
    }
    targets = choose(layers, network, family)
    return sum(_of_layer(shapes[f"{target.name}.weight"], target.rank) for target in targets)


def _of_layer(shape: Shape, rank: int) -> int:
    return rank * (shape[0] + math.prod(shape[1:]))

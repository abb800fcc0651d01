"""What text encoders in training take of the device, from shapes and settings alone. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from eridiff.encoding.live import trained_encoders
from eridiff.families.checkpoints.fitting import shapes_of
from eridiff.families.frozen.keep import Shape
from eridiff.lora.encoders import choose_in_encoder
from eridiff.training.footprint import Footprint, average_bytes, lora_bytes, state_bytes

if TYPE_CHECKING:
    from eridiff.families.base import ModelFamily, TrainableEncoder
    from eridiff.families.checkpoints.base import Base
    from eridiff.recipe import Network, Recipe, Train

UNITS = 20.5
"""Activations `[B, 77, width]` that autograd keeps for a layer of CLIP-L with LoRA; CLIP-G's keep 16.5."""
TOKENS = 77


def with_encoders(denoisers: Footprint, recipe: Recipe, family: ModelFamily, base: Base) -> Footprint:
    """A footprint with that of the text encoders that the recipe trains, if any, added.

    Args:
        denoisers: without them.
        recipe: its settings.
        family: the recipe's.
        base: files of the encoders, whose headers are read.

    Raises:
        ModelError: the base lacks an encoder.
    """
    item_bytes = 4 if recipe.precompute.text_dtype == "fp32" else 2
    found = denoisers
    for encoder, shapes in _trained(recipe, family, base):
        trained = _num_trained(shapes, encoder, recipe.network)
        found = Footprint(
            base=found.base + item_bytes * sum(map(math.prod, shapes.values())),
            lora=found.lora + lora_bytes(recipe.network, trained),
            optimizer=found.optimizer
            + state_bytes(recipe.train, trained)
            + average_bytes(recipe.train, trained),
            activations=found.activations + item_bytes * _num_kept(shapes, recipe.train),
            workspace=found.workspace,
        )
    return found


def _num_kept(shapes: Mapping[str, Shape], train: Train) -> int:
    """Numbers that a forward pass leaves for the backward pass."""
    captions = 2 if train.caption_dropout_rate > 0 and not train.caption_dropout_pooled else 1
    ends = [shape[0] for name, shape in shapes.items() if name.endswith(".mlp.fc2.weight")]
    return round(UNITS * train.batch_size * captions * TOKENS * sum(ends))


def _trained(
    recipe: Recipe, family: ModelFamily, base: Base
) -> list[tuple[TrainableEncoder, Mapping[str, Shape]]]:
    names = trained_encoders(recipe)
    return [
        (encoder, shapes_of(base.layout.models[encoder.name], base.component(encoder.name)))
        for encoder in family.trainable_encoders
        if encoder.name in names
    ]


def _num_trained(shapes: Mapping[str, Shape], encoder: TrainableEncoder, network: Network) -> int:
    """Numbers in an encoder's LoRA."""
    linear = [
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    ]
    targets = choose_in_encoder(linear, encoder, network)
    return sum(target.rank * sum(shapes[f"{target.name}.weight"]) for target in targets)

"""Whether a training fits into a card, and what to change where it does not. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eridiff.cards import card_bytes
from eridiff.families.activations import Workload
from eridiff.families.checkpoints.fitting import shapes_of
from eridiff.training.encoder_footprint import with_encoders
from eridiff.training.footprint import CONTEXT_BYTES, Footprint, footprint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eridiff.families.base import ModelFamily
    from eridiff.families.checkpoints.base import Base
    from eridiff.families.frozen.keep import Quantization
    from eridiff.recipe import Recipe, Train
    from eridiff.store.snapshots import Sample

_FINER: dict[Quantization, Quantization] = {"none": "int8", "int8": "nf4", "fp8": "nf4"}
"""A quantisation to the next that takes less memory."""
_OFFLOAD_STEP = 0.25


@dataclass(frozen=True)
class Room:
    """What a training is predicted to take of its card.

    Attributes:
        needed: by what it is for.
        checkpointed: whether that is with gradient checkpointing of all blocks.
        card: bytes of the card, the smallest of several; none where it is not known.
        num_cards: that the denoiser's blocks are spread over; 1 where each card holds them by itself.
        advice: what to change where it does not fit.
    """

    needed: Footprint
    checkpointed: bool
    card: int | None
    num_cards: int
    advice: str

    @property
    def fits(self) -> bool:
        """Whether it does, or may as far as one knows."""
        return self.card is None or self.needed.total + CONTEXT_BYTES <= self.card

    def __str__(self) -> str:
        how = " with gradient checkpointing" if self.checkpointed else ""
        card = "" if self.card is None else f", of a card's {self.card / 1e9:.1f} GB"
        spread = f", the base spread over {self.num_cards} cards" if self.num_cards > 1 else ""
        return f"{self.needed}{how}{card}{spread}" + ("" if self.fits else f": too much; {self.advice}")


def room(recipe: Recipe, family: ModelFamily, base: Base, samples: Iterable[Sample]) -> Room:
    """What a recipe's training will take on the device, and of what.

    Where `train.shard_base` is set and there are several cards, that is a training on all of them.

    Args:
        recipe: its settings.
        family: the recipe's.
        base: files of the denoiser, and of text encoders that are trained; their headers are read.
        samples: what is trained on; where there is none yet, squares of the recipe's resolution count.

    Raises:
        ModelError: the base lacks the denoiser, or a text encoder that is trained.
    """
    name = base.layout.denoiser
    shapes = shapes_of(base.layout.models[name], base.component(name))
    sizes, train = card_bytes(recipe.device), recipe.train
    num_here = max(len(sizes), 1)
    num_cards = num_here if train.shard_base else 1
    work = largest_batch(recipe, family, samples, num_cards=num_cards)

    def found(*, checkpointed: bool) -> Room:
        denoisers = footprint(recipe, family, shapes, work, checkpointed=checkpointed, num_cards=num_cards)
        return Room(
            needed=with_encoders(denoisers, recipe, family, base),
            checkpointed=checkpointed,
            card=min(sizes, default=None),
            num_cards=num_cards,
            advice=next_saving(
                train,
                recipe.model.quantize,
                num_cards=num_here,
                num_processes=num_cards,
                from_weights=recipe.network.starts_from_weights,
            ),
        )

    asked = found(checkpointed=train.gradient_checkpointing is True)
    if asked.fits or train.gradient_checkpointing != "auto":
        return asked
    return found(checkpointed=True)


def largest_batch(
    recipe: Recipe, family: ModelFamily, samples: Iterable[Sample], *, num_cards: int
) -> Workload:
    """What one of the cards computes of a batch of the largest bucket."""
    sides = {(sample.bucket_height, sample.bucket_width) for sample in samples}
    sides = sides or {(dataset.resolution, dataset.resolution) for dataset in recipe.datasets}
    height, width = max(sides, key=lambda side: side[0] * side[1])
    stride = family.latent.stride
    return Workload(-(-recipe.train.batch_size // num_cards), height // stride, width // stride)


def next_saving(
    train: Train, quantize: Quantization, *, num_cards: int, num_processes: int, from_weights: bool
) -> str:
    """What to change first where a step does not fit: what costs least of quality and time.

    Args:
        train: its settings.
        quantize: what the base is kept in.
        num_cards: of this machine, at least 1, that the base could be spread over.
        num_processes: that share a batch, at least 1.
        from_weights: whether the LoRA starts from weights, which must then be whole.
    """
    if train.gradient_checkpointing is False:
        return "set train.gradient_checkpointing: auto"
    if train.batch_size > num_processes:
        smaller, more = train.batch_size // 2, 2 * train.gradient_accumulation_steps
        return f"set train.batch_size: {smaller} and train.gradient_accumulation_steps: {more}"
    if num_cards > 1 and not train.offload and not (train.shard_base and num_processes > 1):
        how = f"start `torchrun --nproc-per-node {num_cards} -m stages.train RECIPE`"
        return how if train.shard_base else f"set train.shard_base: true and {how}"
    if quantize == "none" and not from_weights:
        return "set model.quantize: int8"
    if train.shard_base:
        return "set train.shard_base: false and train.offload: 1"
    if train.offload < 1:
        return f"set train.offload: {min(train.offload + _OFFLOAD_STEP, 1.0):g}"
    if quantize in _FINER and not from_weights:
        return f"set model.quantize: {_FINER[quantize]}"
    leaner = "" if train.optimizer == "adamw8bit" else ", or set train.optimizer: adamw8bit"
    return f"lower datasets.resolution or network.linear{leaner}"

"""LoRA inside CLIP text encoders: which layers are adapted, and what the trained parameters are called.

Nothing here loads torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from eridiff.families.checkpoints.keys import count
from eridiff.lora.resolving import CLIP_ATTENTION, CLIP_LAYER, clip_module
from eridiff.lora.targets import Target

if TYPE_CHECKING:
    from torch import nn

    from eridiff.families.base import TrainableEncoder
    from eridiff.recipe import Network

Encoders: TypeAlias = "Mapping[str, nn.Module]"
"""Text encoders that are trained with a denoiser, by component."""

NO_ENCODERS: Encoders = MappingProxyType({})

_LAYERS = "text_model.encoder.layers."


def choose_in_encoder(
    linear: Sequence[str], encoder: TrainableEncoder, network: Network
) -> tuple[Target, ...]:
    """The modules of a CLIP that a recipe adapts, in the model's order and under its own names.

    Args:
        linear: names of the model's linear modules.
        encoder: says which layers are left out, since nothing could train them.
        network: the recipe's section.
    """
    inside = CLIP_ATTENTION if network.text_encoder_targets == "attn" else CLIP_LAYER
    last = count(map(clip_module, linear), _LAYERS) - encoder.idle_layers
    wanted = {f"{_LAYERS}{number}.{module}" for number in range(last) for module in inside}
    rank = network.text_encoder_linear or network.linear
    alpha = network.linear_alpha / network.linear * rank * (math.sqrt(rank) if network.rslora else 1)
    return tuple(Target(name, rank, alpha) for name in linear if clip_module(name) in wanted)


def parameter_name(component: str, name: str) -> str:
    """What a module or parameter of an encoder is called among those of a run, and in a LoRA.

    The name is the same with every transformers: `text_encoder.text_model.encoder.layers.0...`.
    """
    return f"{component}.{clip_module(name)}"


def is_of_encoder(name: str) -> bool:
    """Whether a parameter of a run is a text encoder's: no denoiser has a module of such a name."""
    return name.startswith("text_encoder")

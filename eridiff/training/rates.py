"""Learning rates that differ between the parameters of a LoRA, as groups of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from eridiff.lora.encoders import is_of_encoder


@dataclass(frozen=True)
class RateGroup:
    """Parameters, by name, that learn at `factor` times the recipe's rate."""

    factor: float
    parameters: Mapping[str, nn.Parameter]


def rate_groups(
    parameters: Mapping[str, nn.Parameter], *, loraplus_lr_ratio: float, encoder_lr_ratio: float = 1.0
) -> tuple[RateGroup, ...]:
    """Parameters by learning rate; in each group `down`s before `up`s, else in their order.

    So those of one input, query, key and value, lie side by side.

    `down` and `up` learn at one rate, or `up` at a multiple of it: LoRA+, https://arxiv.org/abs/2402.12354.

    Args:
        parameters: name to parameter, named as peft does: `up` has `.lora_B.` in its name.
        loraplus_lr_ratio: the rate of `up`, as a multiple of that of `down`.
        encoder_lr_ratio: the rate of text encoders, as a multiple of the denoiser's.
    """
    groups: dict[float, dict[str, nn.Parameter]] = {}
    for name, parameter in sorted(parameters.items(), key=lambda item: _is_up(item[0])):
        factor = loraplus_lr_ratio if _is_up(name) else 1.0
        factor *= encoder_lr_ratio if is_of_encoder(name) else 1.0
        groups.setdefault(factor, {})[name] = parameter
    return tuple(RateGroup(factor, members) for factor, members in groups.items())


def _is_up(name: str) -> bool:
    return ".lora_B." in name

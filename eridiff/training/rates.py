"""Learning rates that differ between the parameters of a LoRA, as groups of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class RateGroup:
    """Parameters, by name, that learn at `factor` times the recipe's rate."""

    factor: float
    parameters: Mapping[str, nn.Parameter]


def rate_groups(parameters: Mapping[str, nn.Parameter], *, loraplus_lr_ratio: float) -> tuple[RateGroup, ...]:
    """Parameters by learning rate, each group in their order.

    `down` and `up` learn at one rate, or `up` at a multiple of it: LoRA+, https://arxiv.org/abs/2402.12354.

    Args:
        parameters: name to parameter, named as peft does: `up` has `.lora_B.` in its name.
        loraplus_lr_ratio: the rate of `up`, as a multiple of that of `down`.
    """
    groups: dict[float, dict[str, nn.Parameter]] = {}
    for name, parameter in parameters.items():
        factor = loraplus_lr_ratio if ".lora_B." in name else 1.0
        groups.setdefault(factor, {})[name] = parameter
    return tuple(RateGroup(factor, members) for factor, members in groups.items())

"""Which modules of a denoiser are adapted, and with what rank: pure functions of names and the recipe."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from eridiff.errors import RecipeError

if TYPE_CHECKING:
    from eridiff.families.base import ModelFamily
    from eridiff.recipe import Network

Layer = Literal["linear", "conv"]


@dataclass(frozen=True)
class Target:
    """A module to adapt; the change of its weight is `alpha / rank * B @ A`."""

    name: str
    rank: int
    alpha: float


def choose(layers: Mapping[str, Layer], network: Network, family: ModelFamily) -> tuple[Target, ...]:
    """The modules that a recipe adapts, in the denoiser's order.

    Args:
        layers: the denoiser's linear layers and convolutions, by name.
        network: the recipe's section.
        family: has the presets.

    Raises:
        RecipeError: a pattern matches no layer, or convolutions are asked of a family that adapts none.
    """
    chosen = _matched(layers, network, family)
    return tuple(_target(name, layers[name], network) for name in layers if name in chosen)


def _matched(layers: Mapping[str, Layer], network: Network, family: ModelFamily) -> set[str]:
    linear = [name for name, kind in layers.items() if kind == "linear"]
    if isinstance(network.targets, str) and network.targets in family.targets:
        patterns = "|".join(f"(?:{pattern})" for pattern in family.targets[network.targets])
        chosen = set(_matching(patterns, linear))
    else:
        asked = (network.targets,) if isinstance(network.targets, str) else network.targets
        chosen = {name for pattern in asked for name in _asked("network.targets", pattern, layers, family)}
    if network.conv is not None:
        chosen |= _convolutions(layers, family)
    for pattern in network.ranks:
        _asked("network.ranks", pattern, sorted(chosen), family)
    return chosen


def _asked(where: str, pattern: str, names: Iterable[str], family: ModelFamily) -> list[str]:
    """Names that a user's pattern matches, at least one."""
    names = list(names)
    try:
        found = _matching(pattern, names)
    except re.error as error:
        raise RecipeError(
            "a pattern is not a regular expression",
            where=where,
            found=f"{pattern} ({error})",
            fix="write `.*` where any text may stand",
        ) from error
    if not found:
        near = ", ".join(_near(pattern, names))
        raise RecipeError(
            "a pattern matches no layer",
            where=where,
            found=pattern,
            wanted=f"one of {', '.join(family.targets)}, or a pattern of whole names; near are: {near}",
        )
    return found


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    whole = re.compile(pattern)
    return [name for name in names if whole.fullmatch(name)]


def _near(pattern: str, names: Sequence[str]) -> list[str]:
    """Names like a pattern; blocks that differ in their numbers only count once."""
    shapes = {re.sub(r"\d+", "*", name): re.sub(r"(?<=\.)\d+(?=\.)", r"\\d+", name) for name in names}
    plain = re.sub(r"\\d\+|\d+|\.\*", "*", pattern)
    ranked = sorted(
        shapes, key=lambda shape: difflib.SequenceMatcher(None, plain, shape).ratio(), reverse=True
    )
    return [shapes[shape] for shape in ranked[:3]]


def _convolutions(layers: Mapping[str, Layer], family: ModelFamily) -> set[str]:
    patterns = "|".join(f"(?:{pattern})" for pattern in family.checkpoint.lora.convolutions)
    found = _matching(patterns, [name for name, kind in layers.items() if kind == "conv"]) if patterns else []
    if not found:
        raise RecipeError(
            f"the denoiser of {family.name} has no convolutions to adapt",
            where="network.conv",
            fix="leave network.conv out",
        )
    return set(found)


def _target(name: str, kind: Layer, network: Network) -> Target:
    if kind == "conv":
        rank = network.conv or network.linear
        ratio = (network.conv_alpha or rank) / rank
    else:
        rank, ratio = network.linear, network.linear_alpha / network.linear
    rank = next((own for pattern, own in network.ranks.items() if re.fullmatch(pattern, name)), rank)
    return Target(name, rank, ratio * rank * (math.sqrt(rank) if network.rslora else 1))

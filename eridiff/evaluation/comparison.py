"""Which image lies where on a sheet: base beside LoRA, seed by seed, or checkpoint after checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eridiff.evaluation.grid import Group
from eridiff.evaluation.pictures import LoraFile, Picture, Settings

MAX_COLUMNS = 6
"""Seeds lie side by side while their columns are no more than this; else each seed has rows of its own."""


@dataclass(frozen=True)
class Comparison:
    """The axes of a sheet and the image at each crossing, a tuple a row."""

    rows: tuple[Group, ...]
    columns: tuple[Group, ...]
    cells: tuple[tuple[Picture, ...], ...]


@dataclass(frozen=True)
class _Column:
    label: str
    strength: float
    lora: LoraFile | None


def by_strength(
    prompts: Sequence[str],
    seeds: Sequence[int],
    strengths: Sequence[float],
    lora: LoraFile,
    settings: Settings,
) -> Comparison:
    """Rows of prompts; a column for each strength, the base first where 0 is among them."""
    ordered = sorted(set(strengths), key=lambda strength: (strength != 0, strength))
    columns = [_Column(strength_label(s), s, lora if s else None) for s in ordered]
    return _compared(prompts, seeds, columns, settings)


def by_checkpoint(
    prompts: Sequence[str],
    seeds: Sequence[int],
    strengths: Sequence[float],
    loras: Sequence[LoraFile],
    settings: Settings,
) -> Comparison:
    """Rows of prompts; the base where 0 is among `strengths`, then each LoRA in the order of training."""
    shown = shown_strength(strengths)
    ordered = sorted(loras, key=lambda lora: lora.step)
    base = [_Column("base", 0.0, None)] if 0 in strengths else []
    columns = [*base, *(_Column(lora.label, shown, lora) for lora in ordered)]
    return _compared(prompts, seeds, columns, settings)


def shown_strength(strengths: Sequence[float]) -> float:
    """The strength at which checkpoints are compared: 1 where it is among them, else the largest."""
    return 1.0 if 1.0 in strengths else max(strengths)


def strength_label(strength: float) -> str:
    """What a column of that strength is called."""
    return f"strength {strength:g}" if strength else "base"


def _compared(
    prompts: Sequence[str], seeds: Sequence[int], columns: Sequence[_Column], settings: Settings
) -> Comparison:
    names = tuple(column.label for column in columns)
    beside = len(seeds) == 1 or len(seeds) * len(columns) <= MAX_COLUMNS
    lines = [tuple(seeds)] if beside else [(seed,) for seed in seeds]
    cells = tuple(
        tuple(Picture(prompt, seed, c.strength, c.lora, settings) for seed in line for c in columns)
        for prompt in prompts
        for line in lines
    )
    labels = tuple(f"seed {seed}" for seed in seeds)
    if beside:
        return Comparison(
            tuple(Group(prompt, ("",)) for prompt in prompts),
            tuple(Group(label, names) for label in labels),
            cells,
        )
    return Comparison(tuple(Group(prompt, labels) for prompt in prompts), (Group("", names),), cells)

"""LoRAs of several runs on one sheet: a column a run, the base first, a row a prompt and seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from eridiff.evaluation.comparison import shown_strength
from eridiff.evaluation.grid import Captions, Group, compose
from eridiff.evaluation.pictures import LoraFile, Picture
from eridiff.evaluation.work import Work
from eridiff.store.files import atomic_path


def draw_sweep(works: Mapping[str, Work], path: Path) -> Path | None:
    """Draws the sheet from images that the runs' evaluations sampled; None where they sampled none.

    Args:
        works: finished evaluations of the same prompts, by what distinguishes them.
        path: where the sheet goes, a PNG.
    """
    first = next(iter(works.values()))
    sample = first.recipe.sample
    if not first.prompts or not any(sample.strengths):
        return None
    lines = [(prompt, seed) for prompt in first.prompts for seed in dict.fromkeys(sample.seeds)]
    strength = shown_strength(sample.strengths)
    subjects = [(name, work, work.final, strength) for name, work in works.items()]
    base = [("base", first, None, 0.0)] if 0 in sample.strengths else []
    columns = [*base, *subjects]
    tiles = [[_path(work, prompt, seed, lora, at) for _, work, lora, at in columns] for prompt, seed in lines]
    seeds = tuple(f"seed {seed}" for seed in dict.fromkeys(sample.seeds))
    rows = tuple(Group(prompt, seeds) for prompt in first.prompts)
    words = Captions(first.recipe.name, f"sweep over {len(works)} runs", f"strength {strength:g}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        sheet = compose(tiles, rows, (Group("", tuple(name for name, *_ in columns)),), words)
        sheet.save(temporary, format="PNG")
    return path


def _path(work: Work, prompt: str, seed: int, lora: LoraFile | None, strength: float) -> Path:
    return Picture(prompt, seed, strength, lora, work.settings).path(work.images)

"""The sheets of an evaluation: the base beside the LoRA, and checkpoint after checkpoint."""

from __future__ import annotations

from pathlib import Path

from PIL import PngImagePlugin

from eridiff.evaluation.comparison import (
    Comparison,
    by_checkpoint,
    by_strength,
    shown_strength,
    strength_label,
)
from eridiff.evaluation.grid import Captions, compose
from eridiff.evaluation.work import Work
from eridiff.store.files import atomic_path

STRENGTHS = "Base and LoRA"
CHECKPOINTS = "Checkpoint after checkpoint"
_FILES = {STRENGTHS: "grid.png", CHECKPOINTS: "checkpoints.png"}


def comparisons(work: Work) -> dict[str, Comparison]:
    """What the sheets show, by caption: nothing without prompts, checkpoints only where they are sampled."""
    sample = work.recipe.sample
    if not work.pictures:
        return {}
    seeds, strengths = tuple(dict.fromkeys(sample.seeds)), tuple(dict.fromkeys(sample.strengths))
    shown = {STRENGTHS: by_strength(work.prompts, seeds, strengths, work.final, work.settings)}
    if sample.checkpoints == "all" and len(work.loras) > 1 and any(strengths):
        shown[CHECKPOINTS] = by_checkpoint(work.prompts, seeds, strengths, work.loras, work.settings)
    return shown


def sheet_path(work: Work, caption: str) -> Path:
    """Where a sheet lies."""
    return work.run.evaluation / _FILES[caption]


def draw_sheets(work: Work) -> dict[str, Path]:
    """Draws all sheets from the sampled images; returns their paths by caption."""
    drawn = {}
    for caption, comparison in comparisons(work).items():
        tiles = [[picture.path(work.images) for picture in line] for line in comparison.cells]
        words = captions(work, caption)
        sheet = compose(tiles, comparison.rows, comparison.columns, words)
        notes = PngImagePlugin.PngInfo()
        for name, value in (("title", words.title), ("description", f"{words.subtitle}; {words.footer}")):
            notes.add_text(name, value)
        drawn[caption] = sheet_path(work, caption)
        with atomic_path(drawn[caption]) as temporary:
            sheet.save(temporary, format="PNG", pnginfo=notes)
    return drawn


def captions(work: Work, caption: str) -> Captions:
    """The words around a sheet."""
    recipe, shared = work.recipe, work.settings
    # Of a path the last part is enough to know it by; a hub id is kept whole.
    base = Path(shared.base_name).name if Path(shared.base_name).is_absolute() else shared.base_name
    trained = f"LoRA of rank {recipe.network.linear}, {recipe.train.steps} steps, on {base}"
    strength = ""
    if caption == CHECKPOINTS:
        strength = strength_label(shown_strength(recipe.sample.strengths))
    how = (
        strength,
        f"{shared.steps} steps",
        f"guidance {shared.guidance:g}",
        f"{shared.width_px} x {shared.height_px} px",
        f"negative prompt: {shared.negative}" if shared.negative else "",
        work.final.path.name,
    )
    return Captions(recipe.name, trained, "  \N{MIDDLE DOT}  ".join(part for part in how if part))

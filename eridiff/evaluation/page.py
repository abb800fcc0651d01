"""Sheets and page of an evaluation on disk, and the mark that says which results they show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eridiff.evaluation import thumbnails
from eridiff.evaluation.comparison import Comparison
from eridiff.evaluation.report import render
from eridiff.evaluation.sheets import CHECKPOINTS, STRENGTHS, comparisons, draw_sheets
from eridiff.evaluation.summary import Summary
from eridiff.evaluation.work import Work
from eridiff.store.files import digest_file, digest_json, write_atomic, write_json

PAGE_VERSION = 1
"""Raised when the same results give another page or other sheets."""

_OUTPUT_NAMES = {STRENGTHS: "grid", CHECKPOINTS: "checkpoint grid"}


@dataclass(frozen=True)
class Shown:
    """What was drawn and said.

    Attributes:
        outputs: where things lie and what was found, in words.
        nbytes: on disk, of sheets and page.
    """

    outputs: Mapping[str, str]
    nbytes: int


def shown(work: Work) -> Shown | None:
    """What the last page told, if it showed these very results and its files are there."""
    try:
        mark = json.loads((work.run.evaluation / "shown.json").read_bytes())
    except (FileNotFoundError, ValueError):  # none was finished: it is made anew
        return None
    whole = all((work.run.evaluation / name).exists() for name in mark["files"])
    whole = whole and thumbnails.is_attached(work)
    return Shown(dict(mark["outputs"]), 0) if whole and mark["page"] == _digest(work) else None


def show(work: Work, results: Summary) -> Shown:
    """Draws sheets, page and the LoRA file's thumbnail, and then marks them as showing these results.

    Args:
        work: every image is there.
        results: every loss and score that was asked for; its figures are drawn here.

    Raises:
        StoreError: the disk is full.
    """
    figures = draw_sheets(work)
    thumbnails.attach(work)
    results = Summary(work, results.losses, results.scores, figures)
    page = work.run.evaluation / "report.html"
    write_atomic(page, render(results.report()).encode())
    outputs = {_OUTPUT_NAMES[caption]: str(path) for caption, path in figures.items()}
    outputs |= {"report": str(page), "lora": str(work.final.path)}
    for name, words in (("hold-out loss", results.loss_words), ("score", results.score_words)):
        if words:
            outputs[name] = words
    files = [*figures.values(), page]
    mark = {"page": _digest(work), "files": [path.name for path in files], "outputs": list(outputs.items())}
    write_json(work.run.evaluation / "shown.json", mark)
    return Shown(outputs, sum(path.stat().st_size for path in files))


def _digest(work: Work) -> str:
    """What names the page: everything that decides what it shows."""
    return digest_json(
        {
            "version": PAGE_VERSION,
            "run": work.run.id,
            "recipe": work.recipe.model_dump(mode="json"),
            "loras": [[lora.label, lora.digest, str(lora.path)] for lora in work.loras],
            "snapshot": [work.snapshot.id, [entry.source for entry in work.snapshot.quarantined]],
            "metrics": digest_file(work.run.metrics),
            "losses": work.grid_digest,
            "sheets": {caption: _keys(found) for caption, found in comparisons(work).items()},
        }
    )


def _keys(comparison: Comparison) -> list[list[Any]]:
    return [[picture.key for picture in line] for line in comparison.cells]

"""Evaluate: sample grids, the loss on the hold-out, scores, and a page about all of it.

Images and losses are named by what decides them, so any run makes only what is missing, and a killed one goes
on where it was. The pipeline is loaded once, and only where an image or a loss is missing.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from eridiff.errors import DataError, Interrupted, ModelError, StoreError
from eridiff.evaluation.holdout import Losses
from eridiff.evaluation.metrics import load_metric, score
from eridiff.evaluation.page import Shown, show, shown
from eridiff.evaluation.results import LossFile, ScoreFile
from eridiff.evaluation.summary import Summary
from eridiff.evaluation.work import Work, gather, subject_key
from eridiff.recipe import Recipe
from eridiff.training.inputs import inputs_of
from stages.dataset import current_snapshot
from stages.stage import Meter, StagePlan, StageReport, StopFlag, progress, stopping

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("eridiff")

_PNG_BYTES_A_PIXEL = 1.5
_PAGE_BYTES = 2_000_000


def plan(recipe: Recipe) -> StagePlan:
    """What `run` would make, by looking at names of files alone; the details say what stands in its way.

    Raises:
        RecipeError: the metric cannot be imported; or network.init_from is missing.
    """
    try:
        work = _finished_work(recipe)
    except (DataError, ModelError, StoreError) as error:  # told again, and fatal, when it is run
        wanted = recipe.sample
        _find_metric(wanted.metric)
        count = len(wanted.prompts) * len(wanted.seeds) * len(wanted.strengths)
        return StagePlan("evaluate", done=0, missing=max(count, 1), details={"not yet": error.what})
    pictures, points, drawn = len(work.missing_pictures), _missing_points(work), shown(work) is not None
    if not drawn:
        _find_metric(recipe.sample.metric)
    found = {"images": pictures, "losses": points, "page": 0 if drawn else 1}
    missing = sum(found.values())
    image_bytes = int(_PNG_BYTES_A_PIXEL * work.settings.width_px * work.settings.height_px)
    return StagePlan(
        "evaluate",
        done=len(work.pictures) + _num_points(work) + 1 - missing,
        missing=missing,
        bytes_to_write=pictures * image_bytes + (0 if drawn else _PAGE_BYTES),
        details={name: count for name, count in found.items() if count},
    )


def run(recipe: Recipe) -> StageReport:
    """Makes what is missing: images, losses, scores, sheets and the page.

    Raises:
        DataError: nothing was ingested.
        StoreError: the run is not finished, an embedding is missing, or the disk is full.
        ModelError: the base or a LoRA file is missing or does not fit.
        RecipeError: the metric cannot be imported, or gives no number; or network.init_from is missing.
        Interrupted: the process was asked to stop; what was made is kept.
    """
    started = time.monotonic()
    work = _finished_work(recipe)
    pictures, points, page = len(work.missing_pictures), _missing_points(work), shown(work)
    drawn = page is None
    if drawn:
        _find_metric(recipe.sample.metric)
    with stopping() as stop:
        written = _make(work, pictures, points, stop) if pictures or points else 0
    page = page or _show(work)
    return StageReport(
        "evaluate",
        done=pictures + points + drawn,
        reused=len(work.pictures) - pictures + _num_points(work) - points + (not drawn),
        quarantined=0,
        seconds=time.monotonic() - started,
        bytes_written=written + page.nbytes,
        outputs=page.outputs,
    )


def _find_metric(name: str | None) -> None:
    """Refuses a wrong name now, not after hours of training and sampling."""
    if name:
        load_metric(name)


def _finished_work(recipe: Recipe) -> Work:
    snapshot = current_snapshot(recipe)
    run = inputs_of(recipe, snapshot).run
    if not run.finished:
        raise StoreError(
            "There is no finished training to evaluate.",
            where=run.folder,
            fix="run `eridiff train` with this recipe first",
        )
    return gather(recipe, run, snapshot)


def _make(work: Work, pictures: int, points: int, stop: StopFlag) -> int:
    """Takes losses and makes images with one pipeline; returns the bytes of the images."""
    from eridiff.devices import find_device, reserved

    device = find_device(work.recipe.device)
    with reserved(device):
        return _make_on(device, work, pictures, points, stop)


def _make_on(device: torch.device, work: Work, pictures: int, points: int, stop: StopFlag) -> int:
    from eridiff.evaluation.session import opened

    with opened(work, device) as session:
        if points:
            with progress("hold-out loss", _num_points(work), done=_num_points(work) - points) as meter:
                session.take_losses(_loss_file(work), _stoppable(meter, stop))
        if not pictures:
            return 0
        with progress("images", len(work.pictures), done=len(work.pictures) - pictures) as meter:
            return session.make_images(_stoppable(meter, stop))


def _stoppable(meter: Meter, stop: StopFlag) -> Callable[[int], None]:
    def advance(count: int) -> None:
        meter.advance(count)
        if stop:
            raise Interrupted(
                "Stopped while evaluating; finished images and losses are kept.",
                fix="run the same command again to go on from there",
            )

    return advance


def _show(work: Work) -> Shown:
    losses: Mapping[str, Losses] = _loss_file(work).read() if work.subjects else {}
    return show(work, Summary(work, losses, _scores(work), figures={}))


def _scores(work: Work) -> Mapping[str, float]:
    """The metric of every image; those that are known are not taken again."""
    name = work.recipe.sample.metric
    if name is None:
        return {}
    file = ScoreFile(work.run.evaluation / "scores.json", name)
    known = file.read()
    metric = load_metric(name)
    new = {p.key: score(metric, p.path(work.images)) for p in work.pictures if p.key not in known}
    if new:
        file.write(known | new)
    return known | new


def _loss_file(work: Work) -> LossFile:
    return LossFile(work.run.evaluation / "validation.json", work.grid_digest)


def _missing_points(work: Work) -> int:
    if not work.subjects:
        return 0
    taken = _loss_file(work).read()
    lacking = [lora for lora in work.subjects if subject_key(lora) not in taken]
    return len(lacking) * len(work.grid.samples) * len(work.grid.times)


def _num_points(work: Work) -> int:
    return len(work.subjects) * len(work.grid.samples) * len(work.grid.times)


if __name__ == "__main__":
    from stages import cli

    cli.main(["evaluate", *sys.argv[1:]])

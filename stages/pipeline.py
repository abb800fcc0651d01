"""The stages in order, and one way to run each: announced, timed, recorded."""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, cast

from eridiff import families, recipe
from eridiff.recipe import Overrides, Recipe
from eridiff.store.files import write_atomic
from stages.stage import StagePlan, StageReport

logger = logging.getLogger("eridiff")

NAMES = ("ingest", "precompute", "train", "evaluate")


class Stage(Protocol):
    """A module of this package: looking and doing."""

    plan: Callable[[Recipe], StagePlan]
    run: Callable[[Recipe], StageReport]


def load_recipe(path: Path, overrides: Overrides = ()) -> Recipe:
    """The recipe in a file, checked against its family's options."""
    return recipe.load(
        path, overrides=overrides, option_models=families.option_models(), profile=families.profile
    )


def stage(name: str) -> Stage:
    """The stage of that name; importing it loads neither torch nor diffusers."""
    return cast(Stage, importlib.import_module(f"stages.{name}"))


def run_stage(name: str, chosen: Recipe) -> StageReport:
    """Runs a stage and records what it did."""
    return record(chosen, stage(name).run(chosen))


def look(chosen: Recipe) -> list[StagePlan]:
    """What every stage would do, in order.

    Asked before the first one runs: what a late stage would refuse is told before an early one costs hours.
    """
    return [stage(name).plan(chosen) for name in NAMES]


def run_all(chosen: Recipe) -> Iterator[StageReport]:
    """Runs every stage in order; one that is complete costs a look."""
    look(chosen)
    for name in NAMES:
        yield run_stage(name, chosen)


def record(chosen: Recipe, report: StageReport) -> StageReport:
    """Logs a report's closing line and keeps the report, with the seconds spent over all its runs."""
    logger.info(report.line())
    if os.environ.get("RANK", "0") != "0":  # of processes that torchrun started, one writes
        return report
    path = _record_path(chosen, report.stage)
    spent = recorded(chosen, report.stage).get("total_seconds", 0.0) + report.seconds
    write_atomic(path, json.dumps(report.as_dict() | {"total_seconds": spent}, indent=2).encode())
    return report


def recorded(chosen: Recipe, name: str) -> dict[str, Any]:
    """The last report of a stage of this recipe's runs, or nothing."""
    try:
        return json.loads(_record_path(chosen, name).read_text())
    except FileNotFoundError:
        return {}


def _record_path(chosen: Recipe, name: str) -> Path:
    return chosen.storage.runs / chosen.name / "stages" / f"{name}.json"

"""A sweep: one recipe with several values of some keys, over one cache, compared at the end.

Under a server: `prefect deployment run sweep/manual -p 'values={"network.linear": [4, 16]}'`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from eridiff.errors import RecipeError
from eridiff.evaluation.results import LossFile
from eridiff.evaluation.sweep_sheet import draw_sweep
from eridiff.evaluation.work import Work, gather, subject_key
from eridiff.recipe import Recipe
from eridiff.training.inputs import inputs_of
from flows import artifacts
from flows.logs import stage_logs
from flows.overrides import NO_OVERRIDES, RecipeOverrides, as_settings
from flows.stopping import orderly
from flows.train_lora import run_stages
from stages import pipeline
from stages.dataset import current_snapshot

Values = dict[str, list[Any]]
SWEPT = ("network", "train")
"""Sections that may be swept: those that the cache does not depend on."""


@flow(name="sweep")
def sweep(
    config: str,
    values: Values,
    overrides: RecipeOverrides = NO_OVERRIDES,
    time_limit_s: Annotated[float, Field(gt=0)] | None = None,
) -> Any:
    """Trains and evaluates every combination of values, and compares them in a table and on a sheet.

    Args:
        config: path of the recipe, seen from the project's folder.
        values: keys of `network` and `train` and the values that each takes.
        overrides: recipe sections and keys to change in all of them.
        time_limit_s: seconds after which the run saves what it has and stops; the next one goes on.

    Returns:
        The hold-out loss of each combination, and where the sheet lies.

    Raises:
        EridiffError: a key cannot be swept, or the recipe, the data, the store or the model is at fault.
        TimeoutError: the time limit was reached.
    """
    settings = as_settings(overrides)
    with stage_logs():
        return orderly(lambda: _sweep(config, settings, values), time_limit_s=time_limit_s)


def combinations(values: Values) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination with its name, `linear 4, lr 0.001`.

    Raises:
        RecipeError: a key is of another section, or nothing is swept.
    """
    if not values or not all(key.split(".")[0] in SWEPT and options for key, options in values.items()):
        raise RecipeError(
            "This cannot be swept.",
            where="values",
            found=values,
            wanted="keys of network or train with at least one value each, as train.lr: [1e-4, 2e-4]",
        )
    for chosen in itertools.product(*values.values()):
        settings = dict(zip(values, chosen, strict=True))
        yield ", ".join(f"{key.rsplit('.', 1)[1]} {value}" for key, value in settings.items()), settings


def _sweep(config: str, settings: dict[str, Any], values: Values) -> dict[str, str]:
    works: dict[str, Work] = {}
    for name, chosen in combinations(values):
        ended = run_stages(config, settings | chosen)
        works[name] = _work(pipeline.load_recipe(Path(config), ended.settings))
    losses = {name: _loss(work) for name, work in works.items()}
    recipe = next(iter(works.values())).recipe
    sheet = draw_sweep(works, recipe.storage.runs / recipe.name / "sweep.png")
    artifacts.show_sweep(recipe, losses, sheet)
    found = {name: "no hold-out" if loss is None else f"{loss:.5f}" for name, loss in losses.items()}
    return found | ({"sheet": str(sheet)} if sheet else {})


def _work(recipe: Recipe) -> Work:
    snapshot = current_snapshot(recipe)
    return gather(recipe, inputs_of(recipe, snapshot).run, snapshot)


def _loss(work: Work) -> float | None:
    if not work.subjects:
        return None
    taken = LossFile(work.run.evaluation / "validation.json", work.grid_digest).read()
    return taken[subject_key(work.final)].mean

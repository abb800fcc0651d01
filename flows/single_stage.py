"""A flow for each stage, so that stages can run on machines of their own, in pools of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prefect import Task, flow
from pydantic import Field

from eridiff.errors import DataError
from eridiff.recipe import Recipe
from flows import artifacts, events, tasks
from flows.fan_out import Workers, each_part
from flows.logs import stage_logs
from flows.overrides import NO_OVERRIDES, RecipeOverrides, as_settings
from flows.stopping import orderly
from stages import pipeline
from stages.dataset import current_snapshot

Parts = Annotated[int, Field(ge=1)]
TimeLimit = Annotated[float, Field(gt=0)] | None


@flow(name="ingest")
def ingest(config: str, overrides: RecipeOverrides = NO_OVERRIDES, time_limit_s: TimeLimit = None) -> Any:
    """Images and captions into shards and a snapshot; another snapshot than before is told as an event.

    Args:
        config: path of the recipe, seen from the project's folder.
        overrides: recipe sections and keys to change.
        time_limit_s: seconds after which the run saves what it has and stops.
    """
    settings = as_settings(overrides)
    with stage_logs():
        return orderly(lambda: _ingest_and_tell(config, settings), time_limit_s=time_limit_s)


@flow(name="precompute-latents")
def precompute_latents(
    config: str,
    overrides: RecipeOverrides = NO_OVERRIDES,
    parts: Parts = 1,
    only: Annotated[int, Field(ge=1)] | None = None,
    workers: Workers = "here",
    time_limit_s: TimeLimit = None,
) -> Any:
    """VAE latents, each once.

    Args:
        config: path of the recipe, seen from the project's folder.
        overrides: recipe sections and keys to change.
        parts: tasks that the work is cut into.
        only: the one part that this run does, where others run elsewhere; all of them by default.
        workers: where parts run: one after the other in this process, or in parallel.
        time_limit_s: seconds after which the run saves what it has and stops.
    """
    settings = as_settings(overrides)
    with stage_logs():
        return orderly(
            lambda: _half(tasks.precompute_latents, config, settings, parts, only, workers),
            time_limit_s=time_limit_s,
        )


@flow(name="precompute-text")
def precompute_text(
    config: str,
    overrides: RecipeOverrides = NO_OVERRIDES,
    parts: Parts = 1,
    only: Annotated[int, Field(ge=1)] | None = None,
    workers: Workers = "here",
    time_limit_s: TimeLimit = None,
) -> Any:
    """Prompt embeddings, each distinct caption once; the arguments are those of the latents."""
    settings = as_settings(overrides)
    with stage_logs():
        return orderly(
            lambda: _half(tasks.precompute_text, config, settings, parts, only, workers),
            time_limit_s=time_limit_s,
        )


@flow(name="train")
def train(config: str, overrides: RecipeOverrides = NO_OVERRIDES, time_limit_s: TimeLimit = None) -> Any:
    """The LoRA, from cached tensors; goes on from the newest checkpoint.

    Args:
        config: path of the recipe, seen from the project's folder.
        overrides: recipe sections and keys to change.
        time_limit_s: seconds after which the run saves a checkpoint and stops.
    """
    settings = as_settings(overrides)
    with stage_logs():
        return orderly(lambda: _whole(tasks.train, config, settings), time_limit_s=time_limit_s)


@flow(name="evaluate")
def evaluate(config: str, overrides: RecipeOverrides = NO_OVERRIDES, time_limit_s: TimeLimit = None) -> Any:
    """Grids, validation loss and the report page.

    Args:
        config: path of the recipe, seen from the project's folder.
        overrides: recipe sections and keys to change.
        time_limit_s: seconds after which the run saves what it has and stops.
    """
    settings = as_settings(overrides)
    with stage_logs():
        return orderly(lambda: _whole(tasks.evaluate, config, settings), time_limit_s=time_limit_s)


def _ingest_and_tell(config: str, settings: tasks.Settings) -> dict[str, str]:
    recipe = pipeline.load_recipe(Path(config), settings)
    before = _snapshot_id(recipe)
    outputs = _whole(tasks.ingest, config, settings)
    after = current_snapshot(recipe).id
    if after != before:
        events.dataset_changed(recipe, config, before=before, after=after)
    return outputs


def _snapshot_id(recipe: Recipe) -> str | None:
    try:
        return current_snapshot(recipe).id
    except DataError:  # nothing was ingested yet
        return None


def _whole(
    stage: Task[[str, tasks.Settings], tasks.Report], config: str, settings: tasks.Settings
) -> dict[str, str]:
    report = stage(config, settings)
    recipe = pipeline.load_recipe(Path(config), report.get("settings", settings))
    artifacts.show_stage(stage.name, recipe, {stage.name: report})
    return dict(report["outputs"])


def _half(
    half: Task[[str, tasks.Settings, int, int], tasks.Report],
    config: str,
    settings: tasks.Settings,
    parts: int,
    only: int | None,
    workers: Workers,
) -> dict[str, str]:
    if only is None:
        made = each_part(half, config, settings, parts=parts, workers=workers)
    else:
        made = [half(config, settings, only, parts)]
    numbers = range(1, parts + 1) if only is None else [only]
    reports = {f"{half.name} {n} of {parts}": report for n, report in zip(numbers, made, strict=True)}
    artifacts.show_stage("precompute", pipeline.load_recipe(Path(config), settings), reports)
    return {name: path for report in made for name, path in report["outputs"].items()}

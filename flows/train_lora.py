"""The main flow: images in, a LoRA and sample grids out.

Prefect shows, retries, schedules and fans out; what is done and what is missing is read from disk alone, so
a killed run is continued by starting a new one. Tasks pass paths, numbers and small dicts, never tensors.

In this process: `python -m flows.train_lora configs/demo-sdxl.yaml`.
Under a server: `prefect deployment run train-lora/manual -p config=configs/demo-sdxl.yaml`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import Task

from eridiff.errors import EridiffError, Interrupted
from eridiff.recipe import Recipe
from flows.artifacts import publish_results
from stages import pipeline, precompute

Overrides = dict[str, Any]


def passes_with_time(_task: Task[..., Any], _run: TaskRun, state: State) -> bool:
    """Whether a failure may pass by itself: an I/O error may, bad input and a request to stop never do."""
    try:
        state.result()
    except (EridiffError, Interrupted):
        return False
    except OSError:
        return True
    except Exception:  # a bug: it will fail again
        return False
    return False


def stage_task(name: str) -> Any:
    """The options that all tasks share: nothing cached by Prefect, retries for what can pass."""
    return task(
        name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=[10, 60],
        retry_condition_fn=passes_with_time,
    )


@stage_task("ingest")
def ingest(config: str, overrides: Overrides) -> dict[str, Any]:
    """Images and captions into shards and a snapshot."""
    return pipeline.run_stage("ingest", pipeline.load_recipe(Path(config), overrides)).as_dict()


@stage_task("precompute-latents")
def precompute_latents(config: str, overrides: Overrides, index: int, count: int) -> dict[str, Any]:
    """One of `count` parts of the VAE latents."""
    return _precompute(config, overrides, "latents", (index, count))


@stage_task("precompute-text")
def precompute_text(config: str, overrides: Overrides, index: int, count: int) -> dict[str, Any]:
    """One of `count` parts of the text embeddings."""
    return _precompute(config, overrides, "text", (index, count))


@stage_task("train")
def train(config: str, overrides: Overrides) -> dict[str, Any]:
    """The LoRA, from cached tensors."""
    return pipeline.run_stage("train", pipeline.load_recipe(Path(config), overrides)).as_dict()


@stage_task("evaluate")
def evaluate(config: str, overrides: Overrides) -> dict[str, Any]:
    """Grids, validation loss and the report page."""
    return pipeline.run_stage("evaluate", pipeline.load_recipe(Path(config), overrides)).as_dict()


@flow(name="train-lora")
def train_lora(config: str, overrides: Overrides | None = None, parts: int = 1) -> Any:
    """Runs a recipe's stages, each only where something is missing.

    Args:
        config: path of the recipe, seen from the project's folder.
        overrides: recipe keys and values, as `{"train.steps": 500}`.
        parts: tasks that each half of precompute is cut into.

    Raises:
        EridiffError: the recipe, the data, the store or the model is at fault.
    """
    logging.getLogger("eridiff").setLevel(logging.INFO)
    changes = overrides or {}
    recipe = pipeline.load_recipe(Path(config), changes)
    reports: dict[str, dict[str, Any]] = {}
    if not _complete(recipe, "ingest"):
        reports["ingest"] = ingest(config, changes)
    if not _complete(recipe, "precompute"):
        for half in (precompute_latents, precompute_text):
            for index in range(1, parts + 1):
                reports[f"{half.name}-{index}"] = half(config, changes, index, parts)
    for name, run in (("train", train), ("evaluate", evaluate)):
        if not _complete(recipe, name):
            reports[name] = run(config, changes)
    if not reports:
        get_run_logger().info("Nothing to do: every stage of %s is finished.", config)
        return Completed(message="Nothing to do: every stage is finished.", data={})
    publish_results(recipe, reports)
    return {name: report["outputs"] for name, report in reports.items()}


def _precompute(
    config: str, overrides: Overrides, half: precompute.Half, part: tuple[int, int]
) -> dict[str, Any]:
    recipe = pipeline.load_recipe(Path(config), overrides)
    return pipeline.record(recipe, precompute.run(recipe, half=half, part=part)).as_dict()


def _complete(recipe: Recipe, name: str) -> bool:
    return pipeline.stage(name).plan(recipe).complete


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m flows.train_lora RECIPE")
    train_lora(sys.argv[1])

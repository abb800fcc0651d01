"""One task a stage, or a part of one: loads the recipe, runs the stage, returns its report.

Tasks take a path and plain settings and return small dicts, so any task runner can carry them. Prefect caches
nothing: what is done is read from disk by the stage itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from eridiff.recipe import Recipe
from flows.gpu import gpu_turn
from flows.logs import stage_logs
from flows.retries import DELAYS_S, RETRIES, ran_out_of_memory, retry_if_it_may_pass, smaller_batches
from stages import pipeline, precompute
from stages.stage import StageReport

logger = logging.getLogger("eridiff")

Settings = dict[str, Any]
Report = dict[str, Any]


def stage_task(name: str, *, run_name: str | None = None, tags: tuple[str, ...] = ()) -> Callable[..., Any]:
    """A task of that name with the options that all share."""
    return task(
        name=name,
        task_run_name=run_name,
        tags=["eridiff", *tags],
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=RETRIES,
        retry_delay_seconds=DELAYS_S,
        retry_condition_fn=retry_if_it_may_pass,
        retry_jitter_factor=0.5,
    )


@stage_task("ingest", tags=("cpu",))
def ingest(config: str, settings: Settings) -> Report:
    """Images and captions into shards and a snapshot."""
    with stage_logs():
        return pipeline.run_stage("ingest", pipeline.load_recipe(Path(config), settings)).as_dict()


@stage_task("precompute-latents", run_name="precompute-latents {index} of {count}", tags=("gpu",))
def precompute_latents(config: str, settings: Settings, index: int, count: int) -> Report:
    """One of `count` parts of the VAE latents."""
    return _on_device(
        "precompute", config, settings, lambda recipe: _precompute(recipe, "latents", (index, count))
    )


@stage_task("precompute-text", run_name="precompute-text {index} of {count}", tags=("gpu",))
def precompute_text(config: str, settings: Settings, index: int, count: int) -> Report:
    """One of `count` parts of the text embeddings."""
    return _on_device(
        "precompute", config, settings, lambda recipe: _precompute(recipe, "text", (index, count))
    )


@stage_task("train", tags=("gpu",))
def train(config: str, settings: Settings) -> Report:
    """The LoRA, from cached tensors; goes on from the newest checkpoint."""
    return _on_device("train", config, settings, lambda recipe: pipeline.run_stage("train", recipe))


@stage_task("evaluate", tags=("gpu",))
def evaluate(config: str, settings: Settings) -> Report:
    """Grids, validation loss and the report page."""
    return _on_device("evaluate", config, settings, lambda recipe: pipeline.run_stage("evaluate", recipe))


@stage_task("publish", tags=("gpu",))
def publish(config: str, settings: Settings) -> Report:
    """The verdict on the LoRA against the champion; the better one is served."""
    return _on_device("publish", config, settings, lambda recipe: pipeline.run_stage("publish", recipe))


def _on_device(stage: str, config: str, settings: Settings, run: Callable[[Recipe], StageReport]) -> Report:
    """The report of a stage that may need a GPU, and under `settings` those that it was run with."""
    with stage_logs(), gpu_turn():
        recipe = pipeline.load_recipe(Path(config), settings)
        try:
            return run(recipe).as_dict() | {"settings": settings}
        except Exception as error:
            smaller = smaller_batches(stage, recipe)
            if not smaller or not ran_out_of_memory(error):
                raise
            logger.warning("Out of device memory: once more with smaller batches, %s", smaller)
        settings = settings | smaller
        return run(pipeline.load_recipe(Path(config), settings)).as_dict() | {"settings": settings}


def _precompute(recipe: Recipe, half: precompute.Half, part: tuple[int, int]) -> StageReport:
    return pipeline.record(recipe, precompute.run(recipe, half=half, part=part))

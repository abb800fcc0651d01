"""Retraining that happens by itself: on a schedule, or when images were added.

Nothing changed since the last verdict: the run ends within seconds. Otherwise what is missing is made, and
the new LoRA becomes the champion only if it is better on the hold-out by the recipe's margin.

In this process: `python -m flows.retrain configs/demo-sdxl.yaml`.
Under a server: `prefect deployment run retrain/nightly`, or wait for the night.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.states import Completed, State
from pydantic import Field

from eridiff.recipe import Recipe
from flows import artifacts, events, tasks
from flows.command import run_flow_here
from flows.fan_out import Workers
from flows.logs import stage_logs
from flows.overrides import NO_OVERRIDES, RecipeOverrides, as_settings
from flows.stopping import orderly
from flows.train_lora import run_stages
from stages import ingest, pipeline, publish


@flow(name="retrain")
def retrain(
    config: str,
    overrides: RecipeOverrides = NO_OVERRIDES,
    parts: Annotated[int, Field(ge=1)] = 1,
    workers: Workers = "here",
    time_limit_s: Annotated[float, Field(gt=0)] | None = None,
) -> Any:
    """Trains again if the images or the recipe changed, and publishes the result if it is better.

    Args:
        config: path of the recipe, seen from the project's folder.
        overrides: recipe sections and keys to change, as `{"publish": {"margin": 0.01}}`.
        parts: tasks that each half of precompute is cut into.
        workers: where parts run: one after the other in this process, or in parallel.
        time_limit_s: seconds after which the run saves what it has and stops; the next one goes on.

    Returns:
        The verdict, and where things lie.

    Raises:
        EridiffError: the recipe, the data, the store or the model is at fault.
        TimeoutError: the time limit was reached.
    """
    settings = as_settings(overrides)
    with stage_logs():
        return orderly(
            lambda: _retrain(config, settings, parts=parts, workers=workers), time_limit_s=time_limit_s
        )


def _retrain(config: str, settings: tasks.Settings, *, parts: int, workers: Workers) -> State[dict[str, str]]:
    recipe = pipeline.load_recipe(Path(config), settings)
    if not ingest.plan(recipe).complete:
        artifacts.show_stage("ingest", recipe, {"ingest": tasks.ingest(config, settings)})
    if publish.plan(recipe).complete:
        return _nothing_new(recipe)
    if publish.judged(recipe) is None:
        started = settings | _start(recipe)
        settings = run_stages(config, started, parts=parts, workers=workers).settings
    outputs = tasks.publish(config, settings)["outputs"]
    artifacts.show_verdict(recipe, outputs)
    events.lora_judged(recipe, config, outputs)
    return Completed(message=outputs["verdict"], data=outputs)


def _nothing_new(recipe: Recipe) -> State[Any]:
    """The end of a run for which there was nothing to do."""
    version = publish.judged(recipe)
    assert version is not None
    decision = version.verdict.decision
    message = f"No change since version {version.number} was {decision}: nothing to train."
    get_run_logger().info(message)
    return Completed(message=message, data={})


def _start(recipe: Recipe) -> dict[str, str]:
    """Where training starts from: the champion's weights, if the recipe says so and there is a champion."""
    registry = publish.registry_of(recipe)
    champion = registry.history().champion
    if recipe.retrain.start_from != "champion" or champion is None:
        return {}
    return {"network.init_from": str(registry.file(champion))}


if __name__ == "__main__":
    run_flow_here(retrain, "Trains again if something changed, and publishes the result if it is better.")

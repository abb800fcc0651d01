"""The main flow: images in, a LoRA and sample grids out.

Prefect shows, retries, schedules and fans out; what is done and what is missing is read from disk alone, so
a killed run is continued by starting a new one. Tasks pass paths, numbers and small dicts, never tensors.

In this process: `python -m flows.train_lora configs/demo-sdxl.yaml`.
Under a server: `prefect deployment run train-lora/manual -p config=configs/demo-sdxl.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.states import Completed, State
from pydantic import Field

from flows import artifacts, tasks
from flows.command import run_flow_here
from flows.fan_out import Workers, each_part
from flows.logs import stage_logs
from flows.overrides import NO_OVERRIDES, RecipeOverrides, as_settings
from flows.stopping import orderly
from stages import pipeline


@flow(name="train-lora")
def train_lora(
    config: str,
    overrides: RecipeOverrides = NO_OVERRIDES,
    parts: Annotated[int, Field(ge=1)] = 1,
    workers: Workers = "here",
    time_limit_s: Annotated[float, Field(gt=0)] | None = None,
) -> Any:
    """Runs a recipe's stages, each only where something is missing.

    Args:
        config: path of the recipe, seen from the project's folder.
        overrides: recipe sections and keys to change, as `{"train": {"steps": 500}}`.
        parts: tasks that each half of precompute is cut into.
        workers: where parts run: one after the other in this process, or in parallel.
        time_limit_s: seconds after which the run saves what it has and stops.

    Returns:
        What was made and found, by name: paths of grid, LoRA and report, losses in words.

    Raises:
        EridiffError: the recipe, the data, the store or the model is at fault.
        TimeoutError: the time limit was reached.
    """
    settings = as_settings(overrides)
    with stage_logs():
        return orderly(
            lambda: _result(run_stages(config, settings, parts=parts, workers=workers)),
            time_limit_s=time_limit_s,
        )


@dataclass(frozen=True)
class Ended:
    """How a recipe's stages ended.

    Attributes:
        outputs: what was made and found, by name.
        settings: those that lead to it: with smaller batches, and so to another run, where memory ran out.
        idle: whether every stage was finished before.
    """

    outputs: Mapping[str, str]
    settings: tasks.Settings
    idle: bool


def run_stages(config: str, settings: tasks.Settings, *, parts: int = 1, workers: Workers = "here") -> Ended:
    """Runs the stages of a recipe in order, inside a flow; a finished one costs a look."""
    recipe = pipeline.load_recipe(Path(config), settings)
    pipeline.look(recipe)
    reports: dict[str, tasks.Report] = {}
    for name in pipeline.NAMES:
        plan = pipeline.stage(name).plan(recipe)
        if plan.complete:
            continue
        if name == "ingest":
            reports[name] = tasks.ingest(config, settings)
        elif name == "precompute":
            for half in (tasks.precompute_latents, tasks.precompute_text):
                made = each_part(half, config, settings, parts=parts, workers=workers)
                reports |= {f"{half.name} {n} of {parts}": report for n, report in enumerate(made, start=1)}
        else:
            reports[name] = {"train": tasks.train, "evaluate": tasks.evaluate}[name](config, settings)
            settings = reports[name]["settings"]
            recipe = pipeline.load_recipe(Path(config), settings)
        artifacts.show_stage(name, recipe, reports)
    if not reports:
        get_run_logger().info("Nothing to do: every stage of %s is finished.", config)
        found = pipeline.recorded(recipe, pipeline.NAMES[-1]).get("outputs", {})
        return Ended(found, settings, idle=True)
    artifacts.show_results(recipe, reports)
    outputs = {name: value for report in reports.values() for name, value in report["outputs"].items()}
    return Ended(outputs, settings, idle=False)


def _result(ended: Ended) -> dict[str, str] | State[dict[str, str]]:
    outputs = dict(ended.outputs)
    if ended.idle:
        return Completed(message="Nothing to do: every stage is finished.", data=outputs)
    return outputs


if __name__ == "__main__":
    run_flow_here(train_lora, "Images in, a LoRA and sample grids out.")

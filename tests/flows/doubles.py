"""Stages that only write down that they ran."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from eridiff.recipe import Recipe
from stages.stage import StagePlan, StageReport

RECIPE = """\
name: double
model: {{family: sdxl, base: "builtin:demo-sdxl"}}
datasets: [{{folder_path: {folder}/images}}]
storage: {{data: {folder}/data, runs: {folder}/runs, registry: {folder}/registry}}
train: {{steps: 10, batch_size: 4}}
device: cpu
"""


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


@dataclass
class Doubles:
    """Stages that are done once their name stands in `done`, and do what `acts` says when they run."""

    config: str
    folder: Path
    done: set[str] = field(default_factory=set)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    acts: dict[str, Callable[[Recipe], None]] = field(default_factory=dict)

    def module(self, name: str) -> DoubleStage:
        return DoubleStage(self, name)

    def run_part(self, recipe: Recipe, *, half: str = "all", part: tuple[int, int] = (1, 1)) -> StageReport:
        self.calls.append(("precompute", half, part))
        self.acts.get("precompute", lambda _: None)(recipe)
        self.done.add("precompute")
        return StageReport("precompute", 3, 1, 0, 0.1, 100, {})


@dataclass
class DoubleStage:
    doubles: Doubles
    name: str

    def plan(self, _recipe: Recipe) -> StagePlan:
        done = self.name in self.doubles.done
        return StagePlan(self.name, done=int(done), missing=int(not done))

    def run(self, recipe: Recipe) -> StageReport:
        self.doubles.calls.append((self.name, recipe.train.batch_size, recipe.train.steps))
        logging.getLogger("eridiff").info("the double of %s speaks", self.name)
        self.doubles.acts.get(self.name, lambda _: None)(recipe)
        self.doubles.done.add(self.name)
        return StageReport(self.name, 1, 0, 0, 0.1, 10, self._outputs())

    def _outputs(self) -> dict[str, str]:
        if self.name == "evaluate":
            grid = self.doubles.folder / "grid.png"
            Image.new("RGB", (1280, 640), "tan").save(grid)
            return {"grid": str(grid)}
        return {}


def failing(*errors: Exception) -> Callable[[Recipe], None]:
    """What raises each of `errors` once, and then nothing."""
    waiting = list(errors)

    def act(_recipe: Recipe) -> None:
        if waiting:
            raise waiting.pop(0)

    return act


def recorded(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / "double" / "stages" / f"{stage}.json").read_text())

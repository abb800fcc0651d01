"""Jobs for tests, in this process or alone: `python -m tests.training.jobs FAMILY WORLD RUNS JSON`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eridiff.devices import DTYPES
from eridiff.errors import StoreError
from eridiff.recipe import Logging, Save, Train
from eridiff.store.runs import Run
from eridiff.training.batches import Batches, Draws
from eridiff.training.distributed import processes
from eridiff.training.loop import Job, Outcome, train
from eridiff.training.order import Draw, Order
from eridiff.training.shard import keep_share
from eridiff.training.step import Batch
from eridiff.training.trainer import StepResult
from tests.training.conftest import CPU, World, make_denoiser, open_world

SETTINGS: Mapping[str, Any] = {
    "batch_size": 4,
    "steps": 8,
    "lr": 0.01,
    "dtype": "fp32",
    "caption_dropout_rate": 0.2,
}


@dataclass
class Told:
    """Hooks that keep what they were told, and ask to stop in step `stop_at`."""

    stop_at: int | None = None
    on_step: Callable[[StepResult], None] | None = None
    resumed_from: int = 0
    steps: list[StepResult] = field(default_factory=list)
    exported: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def resumed(self, step: int) -> None:
        self.resumed_from = step

    def stop(self) -> bool:
        return self.resumed_from + len(self.steps) + 1 == self.stop_at

    def step(self, result: StepResult) -> None:
        self.steps.append(result)
        if self.on_step:
            self.on_step(result)

    def export(self, step: int, weights: Mapping[str, Tensor]) -> None:
        self.exported[step] = {name: value.detach().clone() for name, value in weights.items()}


def make_job(
    world: World,
    run: Run,
    *,
    device: torch.device = CPU,
    save_every: int = 3,
    log_every: int = 1,
    **settings: Any,
) -> Job:
    """A job with the tests' settings, and `settings` of the recipe's train section over them."""
    chosen = Train.model_validate({**SETTINGS, **settings})
    denoiser, parameters = make_denoiser(world, device, DTYPES[chosen.dtype])
    draws = Draws(chosen.seed, chosen.caption_dropout_rate, chosen.caption_dropout_pooled)
    return Job(
        run=run,
        family=world.family,
        denoiser=denoiser,
        parameters=parameters,
        batches=Batches(world.family, world.cached, world.samples, draws),
        order=Order(world.samples, chosen.batch_size, chosen.seed),
        train=chosen,
        save=Save(save_every=save_every),
        logging=Logging(log_every=log_every),
        config={},
    )


def go(job: Job, **asked: Any) -> tuple[Outcome, Told]:
    """Runs a job; `asked` are fields of `Told`."""
    told = Told(**asked)
    with processes(next(iter(job.parameters.values())).device) as us:
        if job.train.shard_base:
            keep_share(job.denoiser, job.family.checkpoint.blocks, us).open(us)
        return train(job, us, told), told


def damage(job: Job, at: int) -> None:
    """Lets the batches of step `at`, from 0, be damaged."""
    make = job.batches.batch

    def damaged(step: int, draws: Sequence[Draw]) -> Batch:
        if step == at:
            raise StoreError("A stored item is damaged: its digest differs.")
        return make(step, draws)

    job.batches.batch = damaged


def main() -> None:
    """Runs a job of its own process.

    In the settings, `kill_at` kills it right after that step; `damaged` is a rank and the step where it finds
    damage.
    """
    family, folder, runs, text = sys.argv[1:]
    settings = json.loads(text)
    kill_at, damaged = settings.pop("kill_at", None), settings.pop("damaged", None)
    torch.set_num_threads(1)
    run = Run(Path(runs), "abc")

    def kill(result: StepResult) -> None:
        if result.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    job = make_job(open_world(family, Path(folder)), run, **settings)
    if damaged and damaged[0] == int(os.environ["RANK"]):
        damage(job, damaged[1])
    go(job, on_step=kill)


if __name__ == "__main__":
    main()

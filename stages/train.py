"""Train: a LoRA from cached latents and embeddings; neither VAE nor text encoders are touched.

With `train.train_text_encoder` the CLIPs are: their LoRA is trained with the denoiser's, from captions.

A run is named by all that decides it, so the same recipe finds its own checkpoints, and its own result.
Several devices: `torchrun --nproc-per-node 4 -m stages.train RECIPE`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eridiff.encoding.live import explained
from eridiff.encoding.spaces import base_of, family_of
from eridiff.errors import DataError
from eridiff.locks import held
from eridiff.recipe import Recipe
from eridiff.store.runs import Run, latest
from eridiff.store.snapshots import Sample
from eridiff.store.tensorfile import digest_tensors
from eridiff.training.inputs import Inputs, inputs_of
from eridiff.training.room import Room, room
from eridiff.training.shelf import steps_in
from stages.dataset import current_snapshot
from stages.stage import Meter, StagePlan, StageReport, StopFlag, progress, stopping

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eridiff.training.distributed import Processes
    from eridiff.training.loop import Outcome
    from eridiff.training.session import Session
    from eridiff.training.trainer import StepResult

logger = logging.getLogger("eridiff")

_SMOOTHING = 0.98


def plan(recipe: Recipe) -> StagePlan:
    """How many steps are left, by looking at files alone.

    Raises:
        ModelError: the base lacks the denoiser.
        RecipeError: network.init_from is missing.
    """
    steps = recipe.train.steps
    try:
        inputs = inputs_of(recipe, current_snapshot(recipe))
    except DataError:
        memory = str(_room(recipe, ()))
        return StagePlan("train", 0, steps, details={"images": "not ingested yet", "memory": memory})
    if inputs.run.finished:
        return StagePlan("train", steps, 0)
    made = max(steps_in(inputs.run), default=0)
    details: dict[str, Any] = {
        "run": inputs.run.id,
        **{f"{k} to encode": n for k, n in inputs.missing.items()},
        "memory": str(_room(recipe, inputs.samples)),
    }
    if said := explained(recipe):
        details["text encoders"] = said
    return StagePlan("train", min(made, steps - 1), max(steps - made, 1), details=details)


def _room(recipe: Recipe, samples: Iterable[Sample]) -> Room:
    return room(recipe, family_of(recipe), base_of(recipe), samples)


def run(recipe: Recipe) -> StageReport:
    """Trains until the last step, from the newest whole checkpoint; does nothing where that is done.

    Raises:
        DataError: nothing was ingested.
        StoreError: latents or embeddings are missing or damaged, the disk is full, or another job is at this
            run and torchrun's processes cannot wait.
        ModelError: the base is missing or does not fit, or the loss is not finite.
        RecipeError: an optimizer or tracker is not installed, targets match nothing, or network.init_from is
            missing.
        Interrupted: the process was asked to stop; a checkpoint was saved.
    """
    started = time.monotonic()
    inputs = inputs_of(recipe, current_snapshot(recipe))
    run = inputs.run
    if not run.finished:
        if said := explained(recipe):
            logger.info("Text encoders: %s.", said)
        with stopping() as stop, _turn(run):
            if not run.finished:  # another process may have made it while this one waited
                before = _files(run)
                outcome = _train(inputs, stop)
                made = outcome.steps - outcome.resumed_from
                return _report(inputs, started, steps_made=made, bytes_written=_bytes_new(run, before))
    logger.info("Nothing to train: %s is finished.", run.folder)
    _make_latest(run)
    return _report(inputs, started, steps_made=0, bytes_written=0)


def _turn(run: Run) -> AbstractContextManager[None]:
    """Lets one training at a time write the run's folder: a second one waits, and finds it finished.

    Of processes that torchrun started the first asks for all, and does not wait, since the others cannot.
    """
    if os.environ.get("RANK", "0") != "0":
        return nullcontext()
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return held(run.folder / "training.lock", f"run {run.id} of {run.name}", wait=alone)


def _train(inputs: Inputs, stop: StopFlag) -> Outcome:
    from eridiff.devices import find_device, reserved

    device = find_device(inputs.recipe.device)
    with reserved(device):
        return _train_on(device, inputs, stop)


def _train_on(device: torch.device, inputs: Inputs, stop: StopFlag) -> Outcome:
    from eridiff.devices import free_memory
    from eridiff.training.distributed import processes

    with processes(device) as us:
        outcome = _train_among(us, inputs, stop)
        free_memory()  # no process may end while another holds memory of its
        us.wait()
        return outcome


def _train_among(us: Processes, inputs: Inputs, stop: StopFlag) -> Outcome:
    from eridiff.compiler_errors import compiler_errors
    from eridiff.training.loop import train
    from eridiff.training.session import open_session, write_facts

    if us.leads:
        write_facts(inputs, us.device)
        _make_latest(inputs.run)
    session = open_session(inputs, us)
    with ExitStack() as stack, compiler_errors("train.compile"):
        outcome = train(session.job, us, _Hooks(session, us, stop, stack))
    if us.leads:
        _seal(inputs, outcome)
    return outcome


class _Hooks:
    """Shows steps, asks whether to stop, and writes LoRA files."""

    def __init__(self, session: Session, us: Processes, stop: StopFlag, stack: ExitStack) -> None:
        self._session, self._us, self._flag, self._stack = session, us, stop, stack
        self._meter: Meter | None = None
        self._loss = self._weight = 0.0

    def resumed(self, step: int) -> None:
        if not self._us.leads:
            return
        if step:
            logger.info("Going on from step %d.", step)
        steps = self._session.job.train.steps
        self._meter = self._stack.enter_context(progress("train", steps, done=step))

    def stop(self) -> bool:
        return bool(self._flag)

    def step(self, result: StepResult) -> None:
        if self._meter is None:
            return
        # A running mean in which the first steps count no more than the later ones.
        self._loss = _SMOOTHING * self._loss + (1 - _SMOOTHING) * result.loss
        self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
        self._meter.advance(1, loss=self._loss / self._weight)

    def export(self, step: int, weights: Mapping[str, Tensor]) -> None:
        self._session.export(step, weights)


def _seal(inputs: Inputs, outcome: Outcome) -> None:
    """Writes the seal; LoRA files of steps at which the run was only interrupted go first.

    Where no step was left to make, what an earlier process found still holds.
    """
    run, recipe = inputs.run, inputs.recipe
    earlier = run.read_seal() if run.sealed else {}
    difference = outcome.attention_difference
    for path in run.lora.glob(f"{run.name}-*.safetensors"):
        step = re.fullmatch(r"-(\d{6,})", path.stem.removeprefix(run.name))
        if step and int(step[1]) % recipe.save.save_every:
            path.unlink()
    run.seal(
        {
            "run": run.id,
            "steps": outcome.steps,
            "lora": run.lora_file().name,
            "lora_tensors": digest_tensors(run.lora_file()),
            "numbers": dict(outcome.last) or run.last_numbers(),
            "attention_difference": earlier.get("attention_difference") if difference is None else difference,
            "provenance": inputs.provenance,
        }
    )


def _make_latest(run: Run) -> None:
    if latest(run.root) != run:
        run.make_latest()


def _files(run: Run) -> dict[Path, tuple[int, int]]:
    """The size and the time of the last change of each file of a run, by its path."""
    found = {path: path.stat() for path in run.folder.rglob("*") if path.is_file()}
    return {path: (status.st_size, status.st_mtime_ns) for path, status in found.items()}


def _bytes_new(run: Run, before: Mapping[Path, tuple[int, int]]) -> int:
    """Bytes of those files of a run that are new or were changed."""
    return sum(state[0] for path, state in _files(run).items() if before.get(path) != state)


def _report(inputs: Inputs, started: float, *, steps_made: int, bytes_written: int) -> StageReport:
    run = inputs.run
    numbers = run.read_seal()["numbers"] if run.sealed else {}
    shown = {key: f"{numbers[key]:.4g}" for key in ("loss", "ms_per_step", "peak_gpu_gb") if key in numbers}
    return StageReport(
        "train",
        done=steps_made,
        reused=inputs.recipe.train.steps - steps_made,
        quarantined=0,
        seconds=time.monotonic() - started,
        bytes_written=bytes_written,
        outputs={"run": str(run.folder), "lora": str(run.lora_file()), **shown},
    )


if __name__ == "__main__":
    from stages import cli

    cli.main(["train", *sys.argv[1:]])

"""A run from its newest checkpoint to its last step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eridiff.devices import DTYPES
from eridiff.errors import Interrupted, ModelError, StoreError
from eridiff.families.base import ModelFamily
from eridiff.families.live import LiveText
from eridiff.lora.encoders import NO_ENCODERS, Encoders
from eridiff.recipe import Logging, Save, Train
from eridiff.store.runs import Run
from eridiff.training import checkpoint
from eridiff.training.attention import attention, check_gradients
from eridiff.training.batches import Batches, StepBatches, step_batches
from eridiff.training.distributed import Processes
from eridiff.training.metrics import Tracker, Window, trackers
from eridiff.training.order import Order
from eridiff.training.prefetch import prefetched
from eridiff.training.probe import probe
from eridiff.training.shelf import folder_of, steps_in
from eridiff.training.trainer import AbandonedError, NonFiniteError, StepResult, Trainer

logger = logging.getLogger(__name__)
AHEAD = 4
"""Steps whose batches are made ahead."""


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and where it is kept.

    Attributes:
        run: the run's folder and id.
        family: makes predictions and losses.
        denoiser: on the device, frozen but for `parameters`.
        parameters: name to trained parameter, float32.
        batches: makes batches of drawn samples.
        order: which samples make which batch.
        train: the recipe's section; `save` and `logging` alike.
        config: the resolved recipe, for trackers to show.
        live: the text encoders that are trained with the denoiser, if any; their LoRA is among `parameters`.
        start: what parameters started from, by name, where they count as changes from there.
    """

    run: Run
    family: ModelFamily
    denoiser: nn.Module
    parameters: Mapping[str, nn.Parameter]
    batches: Batches
    order: Order
    train: Train
    save: Save
    logging: Logging
    config: Mapping[str, Any]
    live: LiveText | None = None
    start: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def encoders(self) -> Encoders:
        """The trained text encoders by component."""
        return NO_ENCODERS if self.live is None else self.live.models


class Hooks(Protocol):
    """What the caller is told, and asked."""

    def resumed(self, step: int) -> None:
        """Called once, with the step that the run goes on from."""
        ...

    def stop(self) -> bool:
        """Whether to save and stop after this step."""
        ...

    def step(self, result: StepResult) -> None:
        """Called after each step."""
        ...

    def export(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Writes the LoRA file of a step from the parameters by name; called on rank 0 alone."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        resumed_from: the step it went on from.
        steps: steps made in all.
        last: the numbers last logged.
        attention_difference: what `check_gradients` found; None where nothing had to be checked.
    """

    resumed_from: int
    steps: int
    last: Mapping[str, float]
    attention_difference: float | None


def train(job: Job, processes: Processes, hooks: Hooks) -> Outcome:
    """Trains until the last step, going on from the newest whole checkpoint.

    Raises:
        Interrupted: `hooks.stop` asked for it; a checkpoint was saved.
        ModelError: the loss is not finite, attention gives wrong gradients, or a batch does not fit.
        StoreError: latents or embeddings are damaged, here or in another process (a checkpoint was saved), or
            the disk is full.
    """
    trainer = Trainer(job.family, job.denoiser, job.parameters, job.train, processes, job.start)
    window = _resume(trainer, job.run, processes)
    start = trainer.step
    hooks.resumed(start)
    on_gpu = processes.device.type == "cuda" and start < job.train.steps
    difference = _tried(job, processes, trainer) if on_gpu else None
    with (
        attention(job.train.attention),
        _tracked(job, processes, start) as track,
        prefetched(_work(job, processes, start), AHEAD) as work,
    ):
        loop = _Loop(job, processes, hooks, trainer, track)
        last = loop.go(work, window)
        if start == job.train.steps:  # killed after its last checkpoint, before its end was noted
            loop.export()
    processes.wait()
    return Outcome(start, trainer.step, last, difference)


@dataclass(frozen=True)
class _Loop:
    """The steps of a run and what happens between them."""

    job: Job
    processes: Processes
    hooks: Hooks
    trainer: Trainer
    track: Tracker

    def go(self, work: Iterator[StepBatches], window: Window) -> Mapping[str, float]:
        """Makes all steps; returns the numbers last logged."""
        job = self.job
        last: Mapping[str, float] = {}
        began = time.monotonic()
        while (item := self._next(work, window)) is not None:
            result = self._advance(item, window)
            now = time.monotonic()
            window, began = window.plus(result, now - began), now
            ended = result.step == job.train.steps
            if ended or result.step % job.logging.log_every == 0:
                last, window = _numbers(window, result, self.processes), Window()
                self.track(result.step, last)
            if ended or result.stop or result.step % job.save.save_every == 0:
                # In this order: after a kill in between, the step is made and exported once more.
                self.export()
                self._save(window)
            self.hooks.step(result)
            if result.stop and not ended:
                raise Interrupted(
                    f"Stopped at step {result.step} of {job.train.steps}; everything is saved.",
                    where=folder_of(job.run, result.step),
                    fix="run the same command again to go on from there",
                )
        return last

    def export(self) -> None:
        if self.processes.leads:
            self.hooks.export(self.trainer.step, self.trainer.exported)

    def _save(self, window: Window) -> None:
        """Keeps what was learnt, if anything was yet."""
        if self.processes.leads and self.trainer.step:
            kept = self.trainer.checkpoint(self.job.run.id, window.kept())
            checkpoint.save(self.job.run, kept, keep=self.job.save.max_step_saves_to_keep)
        self.processes.wait()  # torchrun ends all processes once one has ended: none may before this stands

    def _next(self, work: Iterator[StepBatches], window: Window) -> StepBatches | None:
        try:
            return next(work, None)
        except StoreError:
            self.trainer.abandon()
            self._save(window)  # the fault is in the data: what was learnt so far is good
            raise

    def _advance(self, work: StepBatches, window: Window) -> StepResult:
        try:
            return self.trainer.advance(work, stop=self.hooks.stop())
        except AbandonedError as error:
            self._save(window)
            raise StoreError(
                "Another process could not read its latents or embeddings.",
                where=f"step {work.step + 1}",
                fix="do what that process says",
            ) from error
        except NonFiniteError as error:
            steps = steps_in(self.job.run)
            good = folder_of(self.job.run, steps[-1]) if steps else "none"
            raise ModelError(
                f"{error.what} is not finite: training stopped before it could spoil the LoRA",
                where=f"step {error.step}, samples {', '.join(error.sample_ids)}",
                found=f"last good checkpoint: {good}",
                fix="lower train.lr, or look at these images; after a change of the recipe a new run starts",
            ) from error


def _numbers(window: Window, result: StepResult, processes: Processes) -> Mapping[str, float]:
    numbers = {**window.means(), "epoch": result.epoch, "lr": result.rate}
    if processes.device.type == "cuda":
        numbers["peak_gpu_gb"] = torch.cuda.max_memory_allocated(processes.device) / 1e9
    return numbers


def _resume(trainer: Trainer, run: Run, processes: Processes) -> Window:
    """Brings the trainer to the newest checkpoint that rank 0 finds; returns the window it kept."""
    kept = checkpoint.newest(run) if processes.leads else None
    step = processes.agree(kept.step if kept else 0)
    if not step:
        trainer.begin()
        return Window()
    kept = kept or checkpoint.load(folder_of(run, step))
    if kept.run != run.id:
        raise StoreError(
            "A checkpoint belongs to another run.",
            where=folder_of(run, step),
            found=kept.run,
            wanted=run.id,
            fix="delete its folder",
        )
    trainer.restore(kept)
    return Window.of(kept.extra)


def _tried(job: Job, processes: Processes, trainer: Trainer) -> float:
    """Tries a GPU before the first step; returns what `check_gradients` found.

    The memory that this takes is not that of steps: plain attention needs more.
    """
    torch.cuda.reset_peak_memory_stats(processes.device)
    with attention(job.train.attention):
        probe(job, processes, trainer)
    difference = _checked_attention(job, processes, trainer)
    torch.cuda.reset_peak_memory_stats(processes.device)
    return difference


def _checked_attention(job: Job, processes: Processes, trainer: Trainer) -> float:
    """Checks gradients on this device's share of the first batch."""
    start = trainer.step
    drawn = job.order.batch(start * job.train.gradient_accumulation_steps)
    draws = drawn.share(processes.rank, processes.size) or drawn.draws[:1]
    difference = check_gradients(
        job.family,
        job.denoiser,
        trainer.parameters,
        job.batches.batch(start, draws).to(processes.device),
        trainer.gradient,
        backend=job.train.attention,
        dtype=DTYPES[job.train.dtype],
    )
    logger.info(
        "Attention %r: gradients differ from plain products by %.1e.", job.train.attention, difference
    )
    return difference


def _work(job: Job, processes: Processes, start: int) -> Iterator[StepBatches]:
    work = step_batches(
        job.batches,
        job.order,
        steps=range(start, job.train.steps),
        accumulation=job.train.gradient_accumulation_steps,
        rank=processes.rank,
        num_ranks=processes.size,
    )
    for item in work:
        if processes.device.type == "cuda":
            yield replace(item, batches=tuple(batch.pinned() for batch in item.batches))
        else:
            yield item


@contextmanager
def _tracked(job: Job, processes: Processes, start: int) -> Iterator[Tracker]:
    if not processes.leads:
        yield lambda step, values: None
        return
    with trackers(job.logging, job.run, step=start, config=job.config) as tracks:

        def track(step: int, values: Mapping[str, float]) -> None:
            for tracker in tracks:
                tracker(step, values)

        yield track

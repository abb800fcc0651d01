"""One step of training, and all that changes from step to step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eridiff.errors import StoreError
from eridiff.families.base import ModelFamily
from eridiff.recipe import Train
from eridiff.training.batches import StepBatches
from eridiff.training.checkpoint import Checkpoint
from eridiff.training.distributed import Processes
from eridiff.training.ema import MovingAverage
from eridiff.training.flat import FlatParameters
from eridiff.training.optimizers import Group, build_optimizer, is_elementwise, optimizer_class
from eridiff.training.passes import Passes
from eridiff.training.rates import RateGroup, rate_groups
from eridiff.training.schedules import rate_factor
from eridiff.training.step import Batch

_STOP, _FAULT = 2, 3
"""Places among the extras of what a process tells all others; the first two are those of `Passes`."""


@dataclass(frozen=True)
class StepResult:
    """What one step showed.

    Attributes:
        step: steps made, this one included.
        epoch: the epoch of its last sample, from 0.
        num_samples: samples over all devices.
        loss: what was minimised, mean over samples.
        plain_loss: mean squared error, comparable between weightings.
        grad_norm: before clipping.
        rate: the learning rate, that of `up` not multiplied by LoRA+'s ratio.
        stop: whether any device was asked to stop.
    """

    step: int
    epoch: int
    num_samples: int
    loss: float
    plain_loss: float
    grad_norm: float
    rate: float
    stop: bool


class NonFiniteError(Exception):
    """The loss or its gradient is NaN or infinite; the step was not taken."""

    def __init__(self, step: int, what: str, sample_ids: tuple[str, ...]) -> None:
        super().__init__(f"{what} of step {step} is not finite")
        self.step, self.what, self.sample_ids = step, what, sample_ids


class AbandonedError(Exception):
    """Another process cannot make this step; it was not taken."""


class Trainer:
    """A LoRA in training.

    Args:
        family: makes predictions and losses.
        denoiser: frozen but for `parameters`.
        parameters: name to trained parameter, float32, on the device.
        settings: the recipe's section.
        processes: the devices that train together.
        start: what parameters started from, by name, where they count as changes from there; the memory is
            that of the model's layers.
    """

    def __init__(
        self,
        family: ModelFamily,
        denoiser: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        settings: Train,
        processes: Processes,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.step = 0
        self._start = dict(start or {})
        self._rates = _rates(parameters, settings)
        # Group after group, so that each is one stretch of memory.
        self.parameters = {name: p for group in self._rates for name, p in group.parameters.items()}
        self._settings, self._processes = settings, processes
        self._flat = FlatParameters(self.parameters, num_extra=4)
        trained = [(self._trained(group), group.factor) for group in self._rates]
        self._optimizer = _optimizer(trained, settings)
        self._passes = Passes(family, denoiser, self._flat, settings, processes)
        average = settings.ema_config
        self._average = MovingAverage(self.parameters, average.ema_decay) if average.use_ema else None

    @property
    def exported(self) -> Mapping[str, Tensor]:
        """The parameters that a LoRA file holds: the moving average where there is one."""
        return self._average.averages if self._average else self.parameters

    def checkpoint(self, run: str, extra: Mapping[str, float]) -> Checkpoint:
        """Everything needed to go on from here."""
        return Checkpoint(
            step=self.step,
            run=run,
            lora=self.parameters,
            optimizer=self._optimizer.state_dict(),
            ema=self._average.averages if self._average else None,
            start=self._start or None,
            extra=extra,
        )

    @torch.no_grad()
    def begin(self) -> None:
        """Begins a run with the lead's start on every device: a decomposition need not be equal on each."""
        for name, start in self._start.items():
            parameter = self.parameters[name]
            parameter.copy_(start)
            self._processes.share_(parameter)
            start.copy_(parameter)
        if self._average is not None:
            self._average.load(self.parameters)

    @torch.no_grad()
    def restore(self, kept: Checkpoint) -> None:
        """Goes back to a checkpoint of the same run.

        Raises:
            KeyError: it lacks a parameter.
            StoreError: the optimizer's state is laid out for another version's groups.
        """
        for name, parameter in self.parameters.items():
            parameter.copy_(kept.lora[name])
        for name, start in self._start.items():
            start.copy_((kept.start or {})[name])
        try:
            self._optimizer.load_state_dict(dict(kept.optimizer))
        except ValueError as error:
            raise StoreError(
                "A checkpoint's optimizer state does not fit this version's.",
                where=f"run {kept.run}, step {kept.step}",
                found=str(error),
                fix="go on with the version that wrote it, or start anew under another name",
            ) from error
        if self._average is not None:
            self._average.load(kept.ema or {})
        self.step = kept.step

    def gradient(self, batch: Batch, *, beside: int = 0) -> Tensor:
        """The flat gradient of a batch's mean loss, as a step computes it; nothing is changed by it.

        Args:
            batch: on any device.
            beside: bytes of the device that must be left over.
        """
        self._passes.fill([batch], len(batch), beside=beside)
        return self._flat.gradients.clone()

    def advance(self, work: StepBatches, *, stop: bool) -> StepResult:
        """Makes one step.

        Args:
            work: this device's share of the step.
            stop: whether this process was asked to stop; every device learns of it.

        Raises:
            AbandonedError: another process called `abandon` instead; nothing was changed.
            NonFiniteError: loss or gradient is not finite; nothing was changed.
        """
        weighted = self._passes.fill(work.batches, work.num_samples)
        told = [(batch.sample_ids, values) for batch, values in zip(work.batches, weighted, strict=True)]
        self._flat.extra[_STOP] = float(stop)
        self._processes.sum_(self._flat.summed)
        norm = self._flat.clip_(self._settings.max_grad_norm)
        # The one wait for the device: before a step that could spoil the parameters.
        loss, plain, stopped, faults, grad_norm = torch.cat([self._flat.extra, norm.view(1)]).tolist()
        if faults:
            raise AbandonedError
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise self._non_finite(loss, told, work)
        rate = self._apply()
        return StepResult(
            step=self.step,
            epoch=work.epoch,
            num_samples=work.num_samples,
            loss=loss,
            plain_loss=plain,
            grad_norm=grad_norm,
            rate=rate,
            stop=stopped > 0,
        )

    def abandon(self) -> None:
        """Joins the others in their next step only to tell them that there is none."""
        self._flat.zero_()
        self._flat.extra[_FAULT] = 1.0
        self._processes.sum_(self._flat.summed)

    def _trained(self, group: RateGroup) -> list[nn.Parameter]:
        """A group's parameters as the optimizer sees them: as one where it treats every number alike."""
        members = list(group.parameters.values())
        if not is_elementwise(optimizer_class(self._settings.optimizer)):
            return members
        return [self._flat.as_one(list(group.parameters))]

    def _apply(self) -> float:
        settings = self._settings
        rate = settings.lr * rate_factor(
            self.step,
            shape=settings.lr_scheduler,
            warmup_steps=settings.lr_warmup_steps,
            num_steps=settings.steps,
        )
        for group, own in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * own.factor
        self._optimizer.step()
        if self._average is not None:
            self._average.update()
        self.step += 1
        return rate

    def _non_finite(
        self, loss: float, told: list[tuple[tuple[str, ...], Tensor]], work: StepBatches
    ) -> NonFiniteError:
        by_loss = not math.isfinite(loss)
        at_fault = tuple(
            name
            for names, values in told
            for name, value in zip(names, values.tolist(), strict=True)
            if not by_loss or not math.isfinite(value)
        )
        return NonFiniteError(
            work.step + 1, "the loss" if by_loss else "the gradient", self._processes.gather(at_fault)
        )


def check_optimizer(settings: Train, device: torch.device) -> None:
    """Builds the recipe's optimizer for trial parameters: what it refuses is told before a base is loaded.

    Raises:
        RecipeError: see `build_optimizer`.
    """
    models = ("", "text_encoder.") if settings.train_text_encoder else ("",)
    names = [f"{model}layer.lora_{factor}.weight" for model in models for factor in "AB"]
    trial = {name: nn.Parameter(torch.zeros(1, 1, device=device)) for name in names}
    groups = _rates(trial, settings)
    _optimizer([(list(group.parameters.values()), group.factor) for group in groups], settings)


def _rates(parameters: Mapping[str, nn.Parameter], settings: Train) -> tuple[RateGroup, ...]:
    return rate_groups(
        parameters,
        loraplus_lr_ratio=settings.loraplus_lr_ratio,
        encoder_lr_ratio=(settings.text_encoder_lr or settings.lr) / settings.lr,
    )


def _optimizer(
    groups: Sequence[tuple[Sequence[nn.Parameter], float]], settings: Train
) -> torch.optim.Optimizer:
    """The recipe's optimizer of groups of parameters, each with its factor of the rate."""
    return build_optimizer(
        settings.optimizer,
        [Group(parameters, settings.lr * factor) for parameters, factor in groups],
        lr=settings.lr,
        params=settings.optimizer_params,
    )

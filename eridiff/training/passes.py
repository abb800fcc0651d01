"""Forward and backward passes of a step: compiled, recorded, checkpointed as asked and as memory allows."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eridiff.devices import DTYPES, worth_compiling
from eridiff.diffusion.objectives import Losses
from eridiff.errors import DoesNotFit
from eridiff.families.base import ModelFamily
from eridiff.families.frozen.linear import quantization_of
from eridiff.lora.forward import compute_in_input_precision, join_projections, lora_forwards
from eridiff.lora.principal import starts
from eridiff.lora.rounding import Rounding
from eridiff.recipe import Train
from eridiff.training.compiling import compile_blocks
from eridiff.training.distributed import Processes
from eridiff.training.flat import FlatParameters
from eridiff.training.graphs import Recorded
from eridiff.training.recompute import recompute
from eridiff.training.room import next_saving
from eridiff.training.step import Batch, losses
from eridiff.training.visiting import carrier_of

logger = logging.getLogger(__name__)

BREAK_EVEN = 100
"""Steps from which compiling pays: it takes 40 to 90 s, and saves about one a step."""


class Passes:
    """Fills flat memory with the gradients of batches.

    Args:
        family: makes predictions and losses.
        denoiser: with its LoRA, on the device but for blocks that visit it; its blocks are compiled in place
            where asked for.
        flat: all trained parameters; its first two extras take the sums of the weighted and plain losses.
        settings: the recipe's section.
        processes: the devices that share each batch; everything lies on this one's.
    """

    def __init__(
        self,
        family: ModelFamily,
        denoiser: nn.Module,
        flat: FlatParameters,
        settings: Train,
        processes: Processes,
    ) -> None:
        device = processes.device
        self._family, self._denoiser, self._flat, self._device = family, denoiser, flat, device
        self._settings, self._num_processes = settings, processes.size
        self._may_recompute = settings.gradient_checkpointing == "auto"
        compute_in_input_precision(denoiser)
        self._carrier = carrier_of(denoiser)
        if self._carrier is None:  # what comes and goes does so layer by layer
            join_projections(denoiser)
        dtype = DTYPES[settings.dtype]
        self._rounding = Rounding(lora_forwards(denoiser), flat.values, flat.gradients, dtype)
        if settings.gradient_checkpointing is True:
            recompute(denoiser)
        compiled = worth_compiling(settings.compile, device, num_items=settings.steps, break_even=BREAK_EVEN)
        if compiled:
            logger.info("Compiling: the first steps take half a minute to one and a half.")
            compile_blocks(denoiser, family.blocks)
        self._records = compiled and device.type == "cuda"
        self._recorded = self._recorder()

    def fill(self, batches: Sequence[Batch], num_samples: int, *, beside: int = 0) -> list[Tensor]:
        """Sets the flat memory to the gradients and losses of `batches`, each divided by `num_samples`.

        Where memory runs out it goes on without recordings, then with gradient checkpointing if that is
        `auto`, which is recorded again.

        Args:
            batches: on any device.
            num_samples: of the step.
            beside: bytes of the device that must be left over.

        Returns:
            The loss of each sample of each batch.

        Raises:
            DoesNotFit: the step needs more memory than there is.
        """
        while True:
            try:
                return self._filled(batches, num_samples, beside)
            except torch.OutOfMemoryError as error:
                shortage = str(error)
            # Only here, where the error no longer holds the tensors of the pass, can memory be given back.
            self._save_memory(shortage)

    def _filled(self, batches: Sequence[Batch], num_samples: int, beside: int) -> list[Tensor]:
        _left_over = torch.empty(beside, dtype=torch.uint8, device=self._device)
        self._flat.zero_()
        return [self._add(batch, 1 / num_samples) for batch in batches]

    def _add(self, batch: Batch, factor: float) -> Tensor:
        self._rest()  # after passes that were not this class's
        if self._recorded is not None:
            found = self._recorded(batch, factor)
        else:
            found = self._run(batch.to(self._device), torch.full((), factor, device=self._device))
        self._flat.extra[:2] += torch.stack([found.weighted.sum(), found.plain.sum()]) * factor
        return found.weighted

    def _run(self, batch: Batch, factor: Tensor) -> Losses:
        try:
            with self._rounding.ahead():
                found = losses(self._family, self._denoiser, batch)
                (found.weighted.sum() * factor).backward()
        finally:
            self._rest()
        return Losses(found.weighted.detach(), found.plain.detach())

    def _rest(self) -> None:
        if self._carrier is not None:
            self._carrier.rest()

    def _save_memory(self, shortage: str) -> None:
        torch.cuda.empty_cache()
        if self._recorded is not None and self._recorded.settled:
            logger.info("Recorded steps do not fit into memory: kernels are launched one by one from here.")
            self._recorded.forget()
            self._recorded = None
            return
        if self._may_recompute:
            logger.info("A step does not fit into memory: gradient checkpointing is on from here.")
            recompute(self._denoiser)
            self._may_recompute = False
            self._recorded = self._recorder()
            return
        raise DoesNotFit(
            "A training step does not fit into the device's memory.",
            where="train",
            found=shortage,
            fix=next_saving(
                self._settings,
                quantization_of(self._denoiser),
                num_cards=max(torch.cuda.device_count(), 1),
                num_processes=self._num_processes,
                from_weights=bool(starts(self._denoiser)),
            ),
        )

    def _recorder(self) -> Recorded | None:
        return Recorded(self._run, self._device) if self._records else None

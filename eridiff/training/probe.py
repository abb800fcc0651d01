"""One pass over the largest batch before the first step: what does not fit stops now, not at step 900."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from eridiff.training.distributed import Processes
from eridiff.training.footprint import state_bytes
from eridiff.training.trainer import Trainer

if TYPE_CHECKING:
    from eridiff.training.loop import Job

logger = logging.getLogger(__name__)


def probe(job: Job, processes: Processes, trainer: Trainer) -> None:
    """Makes gradients of this device's share of the largest batch, beside room for the optimizer's state.

    Nothing is drawn, changed or kept by it, but that gradient checkpointing may be on afterwards.

    Args:
        job: what is trained.
        processes: the devices.
        trainer: at its first step, or after a restart.

    Raises:
        ModelError: it does not fit; it names the setting to change.
    """
    drawn = job.order.largest()
    draws = drawn[processes.rank :: processes.size] or drawn[:1]
    batch = job.batches.batch(trainer.step, draws).to(processes.device)
    num_trained = sum(parameter.numel() for parameter in trainer.parameters.values())
    trainer.gradient(batch, beside=0 if trainer.step else state_bytes(job.train, num_trained))
    if processes.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(processes.device) / 1e9
        height, width = (side * job.family.latent.stride for side in batch.clean.shape[-2:])
        logger.info("%d of %dx%d px, the largest batch, take %.1f GB.", len(batch), width, height, peak)

"""The proof of a run's LoRA file: the base with the file computes what the trained denoiser computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from eridiff.families.checkpoints.loranames import Format
from eridiff.lora.inject import Injected, load_state, lora_state
from eridiff.lora.output import check_output
from eridiff.training.loop import Job


def prove(
    path: Path, job: Job, injected: Injected, weights: Mapping[str, Tensor], *, file_format: Format
) -> float:
    """Compares outputs for the first sample of the run.

    Args:
        path: the LoRA file.
        job: what was trained; its models are left as they were.
        injected: the adapters inside.
        weights: what the file was made of: the trained parameters or their moving average.
        file_format: names in the file.

    Returns:
        Norm of the difference, as a share of the LoRA's effect.

    Raises:
        ModelError: the difference is more than rounding explains.
    """
    device = next(iter(job.parameters.values())).device
    batch = job.batches.batch(0, job.order.batch(0).draws[:1]).to(device)
    noisy = job.family.objective.noised(batch.clean, batch.noise, batch.t)

    def predict() -> Tensor:
        return job.family.predict(job.denoiser, noisy, batch.t, batch.told())

    with _carrying(job, weights):
        return check_output(
            path,
            injected.lora(weights),
            job.denoiser,
            job.family,
            predict,
            file_format=file_format,
            encoders=job.encoders,
        )


@contextmanager
def _carrying(job: Job, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The trained models with some weights in their LoRA, and afterwards with their own again."""
    trained = lora_state(job.denoiser, job.encoders)
    own = {name: parameter.detach().clone() for name, parameter in trained.items()}
    load_state(job.denoiser, weights, job.encoders)
    try:
        yield
    finally:
        load_state(job.denoiser, own, job.encoders)

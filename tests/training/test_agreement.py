"""Long runs of the fast step beside the same run in plain float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from eridiff.devices import DTYPES
from eridiff.families.frozen.keep import PLAIN, Keep
from eridiff.recipe import Train
from eridiff.training.attention import attention
from eridiff.training.batches import Batches, Draws, StepBatches
from eridiff.training.distributed import Processes
from eridiff.training.order import Draw
from eridiff.training.trainer import Trainer
from tests.training.conftest import PROJECTIONS, World, make_denoiser

STEPS = 200
BOUNDS = {"bf16": (0.005, 0.1), "int8": (0.005, 0.2), "fp8": (0.005, 0.5), "nf4": (0.005, 0.8)}
"""What the base is kept in, to the largest accepted relative differences: of the losses, and of the change of
the weights. On a CPU, with exact sums, they are 2e-4 and 0.02; 3e-4 and 0.02 (Flux) to 0.09 (SDXL); 5e-4 and
0.05 (SDXL) to 0.35 (Flux); 7e-4 and 0.5. A base in few bits is another base; the losses say that it is one as
good."""


def learnt(
    world: World, device: torch.device, keep: Keep = PLAIN, **settings: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of each step, and by how much each parameter changed, as vectors."""
    chosen = Train.model_validate({"lr": 1e-3, "steps": STEPS, **settings})
    denoiser, parameters = make_denoiser(world, device, DTYPES[chosen.dtype], keep, PROJECTIONS)
    start = torch.cat([parameter.detach().flatten().clone() for parameter in parameters.values()])
    trainer = Trainer(world.family, denoiser, parameters, chosen, Processes(0, 1, device))
    maker = Batches(world.family, world.cached, world.samples, Draws(5, 0.0, True))
    told = []
    with attention(chosen.attention):
        for step in range(STEPS):
            numbers = range(4) if step % 2 else range(5, 8)
            batch = maker.batch(step, [Draw(world.samples[number].sample_id, 0) for number in numbers])
            told.append(trainer.advance(StepBatches(step, 0, len(batch), (batch.pinned(),)), stop=False).loss)
    end = torch.cat([parameter.detach().flatten() for parameter in parameters.values()])
    return torch.tensor(told), (end - start).cpu()


@pytest.mark.gpu
@pytest.mark.parametrize("kept", BOUNDS)
def test_two_hundred_fast_steps_learn_what_plain_float32_does(
    larger_world: World, kept: str, record_property: Callable[[str, object], None]
) -> None:
    cuda = torch.device("cuda")
    losses, change = learnt(larger_world, cuda, dtype="fp32", compile=False, attention="math")
    keep = PLAIN if kept == "bf16" else Keep(kept)  # pyright: ignore[reportArgumentType]
    fast_losses, fast_change = learnt(larger_world, cuda, keep, dtype="bf16", compile=True, attention="auto")
    of_losses = float((fast_losses - losses).norm() / losses.norm())
    of_change = float((fast_change - change).norm() / change.norm())
    record_property("losses", of_losses)
    record_property("change", of_change)
    assert losses[-20:].mean() < losses[:20].mean()
    assert of_losses < BOUNDS[kept][0]
    assert of_change < BOUNDS[kept][1]

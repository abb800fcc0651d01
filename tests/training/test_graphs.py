from __future__ import annotations

import pytest
import torch

from eridiff.recipe import Train
from eridiff.training import graphs
from eridiff.training.attention import attention
from eridiff.training.batches import Batches, Draws, StepBatches
from eridiff.training.distributed import Processes
from eridiff.training.order import Draw
from eridiff.training.step import Batch
from eridiff.training.trainer import Trainer
from tests.training.conftest import World, make_denoiser

pytestmark = pytest.mark.gpu


def batch_of(world: World, numbers: range, step: int) -> Batch:
    maker = Batches(world.family, world.cached, world.samples, Draws(5, 0.0, True))
    return maker.batch(step, [Draw(world.samples[number].sample_id, 0) for number in numbers]).pinned()


def weights_after(world: World, compile: bool, **settings: object) -> tuple[torch.Tensor, list[float]]:
    """Parameters and losses after steps on four shapes of batch, two of them in one step."""
    cuda = torch.device("cuda")
    denoiser, parameters = make_denoiser(world, cuda)
    chosen = Train.model_validate({"dtype": "fp32", "lr": 1e-3, "compile": compile, **settings})
    trainer = Trainer(world.family, denoiser, parameters, chosen, Processes(0, 1, cuda))
    told = []
    with attention("math"):
        for step in range(8):
            shapes = [(range(4),), (range(5, 8),), (range(3), range(2))][step % 3]
            batches = tuple(batch_of(world, numbers, step) for numbers in shapes)
            work = StepBatches(step, 0, sum(map(len, batches)), batches)
            told.append(trainer.advance(work, stop=False).loss)
    return torch.cat([parameter.detach().flatten() for parameter in parameters.values()]), told


@pytest.mark.parametrize("checkpointed", [False, True])
def test_recorded_passes_learn_what_eager_ones_do(larger_world: World, checkpointed: bool) -> None:
    wanted, losses = weights_after(larger_world, False, gradient_checkpointing=checkpointed)
    found, told = weights_after(larger_world, True, gradient_checkpointing=checkpointed)
    assert told == pytest.approx(losses, rel=1e-3)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3


def test_past_the_limit_passes_run_unrecorded(larger_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, _ = weights_after(larger_world, True)
    monkeypatch.setattr(graphs, "MAX_RECORDINGS", 1)
    found, _ = weights_after(larger_world, True)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3

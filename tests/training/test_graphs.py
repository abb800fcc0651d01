from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from eridiff.families import live
from eridiff.families.frozen.keep import Keep
from eridiff.families.live import LiveText
from eridiff.recipe import Train
from eridiff.training import graphs
from eridiff.training.attention import attention
from eridiff.training.batches import Batches, Draws, StepBatches
from eridiff.training.distributed import Processes
from eridiff.training.offload import offload_blocks
from eridiff.training.order import Draw
from eridiff.training.step import Batch
from eridiff.training.trainer import Trainer
from tests.training.conftest import PROJECTIONS, World, make_denoiser

pytestmark = pytest.mark.gpu


def batch_of(world: World, numbers: range, step: int, text: LiveText | None = None) -> Batch:
    maker = Batches(world.family, world.cached, world.samples, Draws(5, 0.0, True), text)
    return maker.batch(step, [Draw(world.samples[number].sample_id, 0) for number in numbers]).pinned()


def make_text(world: World, cuda: torch.device) -> tuple[LiveText, dict[str, nn.Parameter]]:
    """Text encoders with a LoRA, and its parameters."""
    text, parameters = live.load(world.family, world.base, device=cuda, dtype=torch.float32), {}
    for component, model in text.models.items():
        torch.manual_seed(3)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "fc2"]), model)
        parameters |= {f"{component}.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    return text, parameters


def weights_after(
    world: World, compile: bool, *, with_text: bool = False, offload: float = 0.0, **settings: object
) -> tuple[torch.Tensor, list[float]]:
    """Parameters and losses after steps on four shapes of batch, two of them in one step."""
    cuda = torch.device("cuda")
    denoiser, parameters = make_denoiser(world, cuda, keep=Keep(offload=offload), targets=PROJECTIONS)
    offload_blocks(denoiser, world.family.checkpoint.blocks, offload, cuda)
    text = None
    if with_text:
        text, of_text = make_text(world, cuda)
        parameters |= of_text
    chosen = Train.model_validate({"dtype": "fp32", "lr": 1e-3, "compile": compile, **settings})
    trainer = Trainer(world.family, denoiser, parameters, chosen, Processes(0, 1, cuda))
    told = []
    with attention("math"):
        for step in range(12):
            shapes = [(range(4),), (range(5, 8),), (range(3), range(2))][step % 3]
            batches = tuple(batch_of(world, numbers, step, text) for numbers in shapes)
            work = StepBatches(step, 0, sum(map(len, batches)), batches)
            told.append(trainer.advance(work, stop=False).loss)
    return torch.cat([parameter.detach().flatten() for parameter in parameters.values()]), told


@pytest.mark.parametrize("checkpointed", [False, True])
def test_recorded_passes_learn_what_eager_ones_do(larger_world: World, checkpointed: bool) -> None:
    wanted, losses = weights_after(larger_world, False, gradient_checkpointing=checkpointed)
    found, told = weights_after(larger_world, True, gradient_checkpointing=checkpointed)
    assert told == pytest.approx(losses, rel=1e-3)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_recorded_passes_fetch_blocks_that_are_away(larger_world: World, share: float) -> None:
    wanted, losses = weights_after(larger_world, False)
    found, told = weights_after(larger_world, True, offload=share)
    assert told == pytest.approx(losses, rel=1e-3)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3


def test_recorded_passes_go_through_text_encoders_too(larger_world: World) -> None:
    wanted, losses = weights_after(larger_world, False, with_text=True)
    found, told = weights_after(larger_world, True, with_text=True)
    assert told == pytest.approx(losses, rel=1e-3)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3


def test_past_the_limit_passes_run_unrecorded(larger_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, _ = weights_after(larger_world, True)
    monkeypatch.setattr(graphs, "MAX_RECORDINGS", 1)
    found, _ = weights_after(larger_world, True)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3

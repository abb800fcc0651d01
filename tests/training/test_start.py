"""A LoRA that starts from weights: its start is a part of what a run keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eridiff.errors import Interrupted
from eridiff.lora.inject import inject, lora_state
from eridiff.recipe import Network, Train
from eridiff.store.runs import Run
from eridiff.training import checkpoint
from eridiff.training.compiling import compile_blocks
from eridiff.training.distributed import Processes
from eridiff.training.loop import Job
from eridiff.training.shard import keep_share
from eridiff.training.shelf import folder_of
from eridiff.training.trainer import Trainer
from tests.training.conftest import CPU, World
from tests.training.jobs import go, make_job
from tests.training.test_compiling import batch_of, gradients

PISSA = Network(linear=2, linear_alpha=2, targets="attn", init="pissa")


def started(world: World) -> tuple[nn.Module, dict[str, nn.Parameter], dict[str, Tensor]]:
    denoiser = world.family.load_denoiser(world.base, device=CPU, dtype=torch.float32)
    injected = inject(denoiser, PISSA, world.family, seed=1)
    return denoiser, lora_state(denoiser), dict(injected.start)


def make(world: World, run: Run, **settings: Any) -> Job:
    denoiser, parameters, start = started(world)
    plain = make_job(world, run, **settings)
    return replace(plain, denoiser=denoiser, parameters=parameters, start=start)


@torch.no_grad()
def mirrored(job: Job) -> Job:
    """Factors with the other sign, as another machine's decomposition may have them."""
    for tensor in (*job.parameters.values(), *job.start.values()):
        tensor.neg_()
    return job


@pytest.mark.parametrize(
    "settings", [{}, {"ema_config": {"use_ema": True, "ema_decay": 0.9}}, {"offload": 0.6}]
)
def test_resumed_where_the_decomposition_differs_equals_straight(
    any_world: World, tmp_path: Path, settings: dict[str, Any]
) -> None:
    straight, resumed = Run(tmp_path / "a", "abc"), Run(tmp_path / "b", "abc")
    job = make(any_world, straight, **settings)
    began = {name: value.clone() for name, value in job.start.items()}
    _, told = go(job)
    with pytest.raises(Interrupted):
        go(make(any_world, resumed, **settings), stop_at=4)
    later = mirrored(make(any_world, resumed, **settings))
    _, after = go(later)
    assert after.steps == told.steps[4:]
    kept = [checkpoint.load(folder_of(run, 8)) for run in (straight, resumed)]
    for name, value in began.items():
        assert torch.equal(kept[0].start[name], value)  # type: ignore[index]
        assert torch.equal(kept[1].start[name], value)  # type: ignore[index]
        assert torch.equal(later.start[name], value)
        assert torch.equal(kept[0].lora[name], kept[1].lora[name])
        assert torch.equal(told.exported[8][name], after.exported[8][name])
    assert any(not torch.equal(value, began[name]) for name, value in kept[0].lora.items())


def test_a_start_stays_where_blocks_are_spread_over_devices(any_world: World) -> None:
    denoiser, _, start = started(any_world)
    before = {name: value.clone() for name, value in start.items()}
    assert before
    keep_share(denoiser, any_world.family.checkpoint.blocks, Processes(0, 2, CPU, 0, 2))
    assert all(torch.equal(value, before[name]) for name, value in start.items())


def test_with_blocks_in_system_memory_it_trains_the_same(any_world: World, tmp_path: Path) -> None:
    kept = []
    for share in (0.0, 1.0):
        run = Run(tmp_path / str(share), "abc")
        go(make(any_world, run, offload=share))
        kept.append(checkpoint.load(folder_of(run, 8)))
    # Weights that come and go are multiplied layer by layer, which rounds otherwise than one product does.
    for name, value in kept[0].lora.items():
        torch.testing.assert_close(value, kept[1].lora[name], rtol=1e-4, atol=1e-6)
    assert kept[0].start
    assert kept[1].start
    assert all(torch.equal(value, kept[1].start[name]) for name, value in kept[0].start.items())


class OtherLead(Processes):
    """A device that is told a start of sevens by rank 0."""

    def share_(self, values: Tensor) -> None:
        values.fill_(7.0)


def test_all_devices_take_the_leads_start(any_world: World) -> None:
    denoiser, parameters, start = started(any_world)
    settings = Train.model_validate({"ema_config": {"use_ema": True}, "dtype": "fp32"})
    trainer = Trainer(any_world.family, denoiser, parameters, settings, OtherLead(1, 2, CPU), start)
    trainer.begin()
    for values in (start, parameters, trainer.exported):
        assert all((value == 7).all() for value in values.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_blocks_learn_the_same(world: World) -> None:
    torch._dynamo.reset()
    denoiser, parameters, _ = started(world)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.01)
    batch = batch_of(world, range(2))
    wanted = gradients(world, denoiser, parameters, batch)
    compile_blocks(denoiser, world.family.blocks, backend="aot_eager")
    found = gradients(world, denoiser, parameters, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))

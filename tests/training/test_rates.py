"""LoRA+: `up` learns faster than `down`, by a factor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from eridiff.store.runs import Run
from eridiff.training import checkpoint
from eridiff.training.rates import rate_groups
from eridiff.training.shelf import folder_of
from tests.training.conftest import World
from tests.training.jobs import go, make_job

RATIO = 8.0


def trained(world: World, folder: Path, **settings: object) -> dict[str, torch.Tensor]:
    run = Run(folder, "abc")
    go(make_job(world, run, steps=3, **settings))
    return dict(checkpoint.load(folder_of(run, 3)).lora)


def test_downs_of_one_rate_come_before_ups_else_in_their_order() -> None:
    names = [f"{layer}.lora_{kind}.weight" for layer in "yx" for kind in "BA"]
    wanted = [f"{layer}.lora_{kind}.weight" for kind in "AB" for layer in "yx"]
    parameters = {name: nn.Parameter(torch.ones(1)) for name in names}
    (group,) = rate_groups(parameters, loraplus_lr_ratio=1.0)
    assert (group.factor, list(group.parameters)) == (1.0, wanted)
    first, second = rate_groups(parameters, loraplus_lr_ratio=4.0)
    assert (first.factor, second.factor) == (1.0, 4.0)
    assert [*first.parameters, *second.parameters] == wanted


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_flat_groups_train_as_groups_of_parameters_do(
    any_world: World, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"optimizer": name, "loraplus_lr_ratio": RATIO, "lr_scheduler": "cosine"}
    flat = trained(any_world, tmp_path / "flat", **settings)
    monkeypatch.setattr("eridiff.training.trainer.is_elementwise", lambda _kind: False)
    apart = trained(any_world, tmp_path / "apart", **settings)
    for parameter, value in apart.items():
        torch.testing.assert_close(flat[parameter], value, rtol=1e-5, atol=1e-7)


def test_one_step_of_sgd_moves_up_by_the_ratio_more(any_world: World, tmp_path: Path) -> None:
    moved = []
    for ratio in (1.0, RATIO):
        run = Run(tmp_path / str(ratio), "abc")
        job = make_job(any_world, run, steps=1, optimizer="sgd", loraplus_lr_ratio=ratio)
        before = {name: value.detach().clone() for name, value in job.parameters.items()}
        go(job)
        moved.append({name: value.detach() - before[name] for name, value in job.parameters.items()})
    for name, step in moved[0].items():
        factor = RATIO if ".lora_B." in name else 1.0
        torch.testing.assert_close(moved[1][name], factor * step, rtol=1e-3, atol=1e-7)

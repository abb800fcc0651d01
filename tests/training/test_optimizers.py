from __future__ import annotations

import pytest
import torch
from torch import nn

from eridiff.errors import RecipeError
from eridiff.training.optimizers import Group, build_optimizer


class OneRate(torch.optim.SGD):
    """Refuses rates that differ, as Prodigy does, when it steps."""

    def step(self, closure: None = None) -> None:
        if len({group["lr"] for group in self.param_groups}) > 1:
            raise RuntimeError("only one rate")
        super().step()


def groups(*rates: float) -> list[Group]:
    return [Group([nn.Parameter(torch.ones(3))], lr) for lr in rates]


def test_the_default_is_torchs_adamw_with_its_arguments() -> None:
    built = build_optimizer("adamw", groups(1e-3), lr=1e-3, params={"betas": [0.8, 0.9], "weight_decay": 0.1})
    assert type(built) is torch.optim.AdamW
    assert built.param_groups[0]["betas"] == (0.8, 0.9)
    assert built.param_groups[0]["lr"] == 1e-3
    assert built.param_groups[0]["weight_decay"] == 0.1


def test_any_class_by_import_path() -> None:
    built = build_optimizer("torch.optim.SGD", groups(0.1), lr=0.1, params={"momentum": 0.9})
    assert type(built) is torch.optim.SGD


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("nosuchmodule.Adam", {}, "pip install nosuchmodule"),
        ("torch.optim.NoSuch", {}, "no such optimizer"),
        ("torch.nn.Linear", {}, "not a torch optimizer"),
        ("adamw", {"weight_decya": 0.1}, "write 'weight_decay'"),
        ("adamw", {"betas": [2.0, 0.9]}, "refused its arguments"),
        ("torch.optim.LBFGS", {}, "several times a step"),
        ("adamw", {"lr": 0.1}, "takes no argument 'lr'"),
    ],
)
def test_what_cannot_be_built_says_what_to_do(name: str, params: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_optimizer(name, groups(0.1), lr=0.1, params=params)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adafactor"])
def test_each_group_keeps_its_rate(name: str) -> None:
    built = build_optimizer(name, groups(0.1, 0.4), lr=0.1, params={"weight_decay": 0.01})
    assert [group["lr"] for group in built.param_groups] == [0.1, 0.4]
    assert {group["weight_decay"] for group in built.param_groups} == {0.01}
    assert not built.state


def test_an_optimizer_that_wants_one_rate_is_refused_before_it_trains() -> None:
    name = f"{OneRate.__module__}.OneRate"
    assert len(build_optimizer(name, groups(0.1, 0.1), lr=0.1, params={}).param_groups) == 2
    with pytest.raises(RecipeError, match="several rates") as caught:
        build_optimizer(name, groups(0.1, 0.4), lr=0.1, params={})
    assert caught.value.where == "train"

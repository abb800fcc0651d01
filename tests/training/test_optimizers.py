from __future__ import annotations

import pytest
import torch
from torch import nn

from eridiff.errors import RecipeError
from eridiff.training.optimizers import build_optimizer


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3))]


def test_the_default_is_torchs_adamw_with_its_arguments() -> None:
    built = build_optimizer("adamw", parameters(), lr=1e-3, params={"betas": [0.8, 0.9], "weight_decay": 0.1})
    assert type(built) is torch.optim.AdamW
    assert built.param_groups[0]["betas"] == (0.8, 0.9)
    assert built.param_groups[0]["lr"] == 1e-3
    assert built.param_groups[0]["weight_decay"] == 0.1


def test_any_class_by_import_path() -> None:
    built = build_optimizer("torch.optim.SGD", parameters(), lr=0.1, params={"momentum": 0.9})
    assert type(built) is torch.optim.SGD


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("adamww", {}, "write 'adamw'"),
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
        build_optimizer(name, parameters(), lr=0.1, params=params)
    assert says in str(caught.value)

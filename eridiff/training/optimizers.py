"""Optimizers by name or import path."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from eridiff.errors import RecipeError
from eridiff.recipe import OPTIMIZERS

WHERE = "train.optimizer"
_ELEMENTWISE = frozenset(
    {
        "torch.optim.adamw.AdamW",
        "torch.optim.adam.Adam",
        "torch.optim.sgd.SGD",
        "bitsandbytes.optim.adamw.AdamW8bit",
        "bitsandbytes.optim.adam.Adam8bit",
    }
)


@dataclass(frozen=True)
class Group:
    """Parameters that are trained at one rate, the peak of its schedule."""

    parameters: Sequence[nn.Parameter]
    lr: float


def build_optimizer(
    name: str, groups: Sequence[Group], *, lr: float, params: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """An optimizer of parameters, whose groups are in the order of `groups`.

    Args:
        name: a key of `OPTIMIZERS`, or the import path of a subclass of `torch.optim.Optimizer`.
        groups: what it trains; not empty.
        lr: the peak learning rate of the recipe.
        params: its other arguments, as the recipe gives them.

    Raises:
        RecipeError: no such class, arguments that it does not take, or rates that it wants equal.
    """
    kind: Any = optimizer_class(name)  # each class has arguments of its own
    if _needs_closure(kind):
        raise RecipeError(
            f"{kind.__name__} evaluates the loss several times a step, which this trainer does not do",
            where=WHERE,
            fix="choose a first-order optimizer, such as adamw",
        )
    known = [key for key in inspect.signature(kind).parameters if key not in ("self", "params", "lr")]
    for key in params:
        if key not in known and not _takes_any(kind):
            near = difflib.get_close_matches(key, known, n=1)
            raise RecipeError(
                f"{kind.__name__} takes no argument {key!r}",
                where=f"train.optimizer_params.{key}",
                wanted=", ".join(known),
                fix=f"write {near[0]!r}" if near else "remove it",
            )
    chosen = _with_tuples(params)
    device = groups[0].parameters[0].device
    if "fused" in known and device.type == "cuda" and not {"foreach", "differentiable"} & chosen.keys():
        chosen = {"fused": True, **chosen}

    def build(groups: Sequence[Group]) -> torch.optim.Optimizer:
        listed = [{"params": list(group.parameters), "lr": group.lr} for group in groups]
        return kind(listed, lr=lr, **chosen)

    try:
        if len({group.lr for group in groups}) > 1:
            _try_rates(build, groups, device)
        return build(groups)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"{kind.__name__} refused its arguments: {error}",
            where="train.optimizer_params",
            found=dict(params),
            fix="read the optimizer's documentation for what it takes",
        ) from error


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class that `name` stands for.

    Raises:
        RecipeError: nothing importable, or not an optimizer.
    """
    path = OPTIMIZERS.get(name, name)
    module_name, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise RecipeError(
            f"the optimizer's module cannot be imported: {error}",
            where=WHERE,
            found=path,
            fix=f"pip install {module_name.partition('.')[0]}, or set train.optimizer: adamw",
        ) from error
    except AttributeError as error:
        raise RecipeError("the module has no such optimizer", where=WHERE, found=path) from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise RecipeError(
            "not a torch optimizer", where=WHERE, found=path, wanted="a subclass of torch.optim.Optimizer"
        )
    return found


def is_elementwise(kind: type[torch.optim.Optimizer]) -> bool:
    """Whether an optimizer treats every number alike, of whichever parameter it is.

    Its update depends on its own history and the settings alone; in 8 bits, also on the largest of the 256
    that are rounded together. So all parameters can be one to it, which takes one launch where bitsandbytes
    makes one for each, and waits for the device each time. (Parameters of fewer than 4096 numbers, of which
    it would keep 32 bits, are then kept in 8 like all others.)
    """
    return f"{kind.__module__}.{kind.__qualname__}" in _ELEMENTWISE


def _try_rates(
    build: Callable[[Sequence[Group]], torch.optim.Optimizer], groups: Sequence[Group], device: torch.device
) -> None:
    """Steps a trial of the optimizer: some, such as Prodigy, refuse rates that differ only there."""
    trial = [Group([nn.Parameter(torch.zeros(1, device=device))], group.lr) for group in groups]
    optimizer = build(trial)
    for group in trial:
        for parameter in group.parameters:
            parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    except (RuntimeError, ValueError) as error:  # NotImplementedError is a RuntimeError
        raise RecipeError(
            f"{type(optimizer).__name__} does not train at several rates: {error}",
            where="train",
            fix="leave train.loraplus_lr_ratio and train.text_encoder_lr out, or choose another optimizer",
        ) from error


def _needs_closure(kind: type[torch.optim.Optimizer]) -> bool:
    closure = inspect.signature(kind.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def _takes_any(kind: type) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(kind).parameters.values())


def _with_tuples(params: Mapping[str, Any]) -> dict[str, Any]:
    # YAML has lists only; torch's own signatures say `betas: tuple`.
    return {key: tuple(value) if isinstance(value, list) else value for key, value in params.items()}

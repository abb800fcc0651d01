"""A LoRA to start from: another file's change, exactly, in the ranks and scales of this recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from eridiff.errors import ModelError, RecipeError
from eridiff.lora.adapters import Adapter, Lora
from eridiff.lora.targets import Target

_TARGETS = "widen network.targets, or set network.conv"
_ENCODERS = "set train.train_text_encoder: true, and network.text_encoder_targets: attn-mlp"


def started(
    state: Mapping[str, Tensor], targets: Mapping[str, Target], lora: Lora, *, path: Path
) -> dict[str, Tensor]:
    """Parameters whose change is that of a LoRA.

    A module that the LoRA leaves alone keeps its fresh factors. A lower rank is filled up with fresh rows of
    `down` and zero columns of `up`, so that the rest can learn; the difference of scales goes into `up`.

    Args:
        state: freshly drawn parameters, by name.
        targets: the adapted modules, by the names that a LoRA has for them.
        lora: what to start from.
        path: the LoRA's file, for messages.

    Raises:
        RecipeError: the file adapts more modules or has a higher rank than the recipe.
        ModelError: it was made for a denoiser of other widths.
    """
    left_out = sorted(lora.layers.keys() - targets.keys())
    if left_out:
        raise RecipeError(
            "network.init_from adapts modules that the recipe does not",
            where=path,
            found=f"{len(left_out)}, such as {', '.join(left_out[:2])}",
            fix=_ENCODERS if left_out[0].startswith("text_encoder") else _TARGETS,
        )
    filled = dict(state)
    for layer, target in targets.items():
        if layer in lora.layers:
            down, up = f"{target.name}.lora_A.weight", f"{target.name}.lora_B.weight"
            filled[down], filled[up] = _filled(state[down], state[up], lora.layers[layer], target, path)
    return filled


def _filled(down: Tensor, up: Tensor, given: Adapter, target: Target, path: Path) -> tuple[Tensor, Tensor]:
    if given.rank > target.rank:
        raise RecipeError(
            "network.init_from has a higher rank than the recipe",
            where=f"{path}: {target.name}",
            found=given.rank,
            wanted=f"at most {target.rank}",
            fix=f"set network.linear (or conv, or ranks) to {given.rank}",
        )
    if given.down.shape[1:] != down.shape[1:] or given.up.shape[0] != up.shape[0]:
        raise ModelError(
            "network.init_from was made for another denoiser",
            where=f"{path}: {target.name}",
            found=f"{given.up.shape[0]} x {tuple(given.down.shape[1:])}",
            wanted=f"{up.shape[0]} x {tuple(down.shape[1:])}",
        )
    new_down, new_up = down.detach().clone(), torch.zeros_like(up)
    new_down[: given.rank] = given.down.to(down)
    new_up[:, : given.rank] = (given.up * (given.scale * target.rank / target.alpha)).to(up)
    return new_down, new_up

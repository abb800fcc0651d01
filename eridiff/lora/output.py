"""The last proof of a LoRA file: with it, the base computes what the trained model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eridiff.errors import ModelError
from eridiff.families.checkpoints.loranames import Format
from eridiff.lora import peft_reader
from eridiff.lora.adapters import Lora
from eridiff.lora.inject import ADAPTER
from eridiff.lora.read import read_lora
from eridiff.lora.verify import readers_of, stored

if TYPE_CHECKING:
    from eridiff.families.base import ModelFamily

_OF_EFFECT = 0.02
"""Share of the LoRA's effect that rounding its factors may change."""
_ROUNDINGS = 24
"""Relative errors of the denoiser's type that may add up on the way to its output."""


@torch.no_grad()
def check_output(
    path: Path,
    trained: Lora,
    denoiser: nn.Module,
    family: ModelFamily,
    predict: Callable[[], Tensor],
    *,
    file_format: Format,
) -> float:
    """Load a LoRA file beside the trained adapters and compare what the denoiser then computes.

    The file goes through diffusers' own reader where that knows such files, else through ours. The denoiser
    is left as it was.

    Args:
        path: the LoRA file.
        trained: what it was made of.
        denoiser: as it was trained, adapters inside.
        family: has the names.
        predict: the denoiser's output for some fixed input.
        file_format: names in the file.

    Returns:
        Norm of the difference, as a share of the LoRA's effect; 0 where the LoRA has none yet.

    Raises:
        ModelError: the difference is more than rounding explains.
    """
    if "diffusers" in readers_of(trained, family, file_format):
        state = stored(path)
    else:
        state = read_lora(path, family, structure=trained.structure).peft_state()
    layers: list[Any] = [module for module in denoiser.modules() if hasattr(module, "lora_A")]
    # Compiled parts would be compiled again for the other adapter: three passes do not pay for that.
    with _plain_forward(layers), torch.compiler.set_stance("force_eager"):
        wanted = predict().float()
        with _without(layers):
            effect = float((wanted - predict().float()).norm())
        with _attached(denoiser, state, layers, family):
            error = float((predict().float() - wanted).norm())
    computed = torch.finfo(next(denoiser.parameters()).dtype).eps * float(wanted.norm())
    if not error <= _OF_EFFECT * effect + _ROUNDINGS * computed:
        raise ModelError(
            "with the LoRA file, the base computes something else than the trained model",
            where=path,
            found=f"a difference of {error:.3g} where the LoRA's effect is {effect:.3g}",
            fix="the file is not published; please report this",
        )
    return error / effect if effect else 0.0


@contextmanager
def _plain_forward(layers: list[Any]) -> Iterator[None]:
    """Let layers compute as their class says, whatever was put into them for training."""
    replaced = [(layer, layer.__dict__.pop("forward", None)) for layer in layers]
    try:
        yield
    finally:
        for layer, forward in replaced:
            if forward is not None:
                layer.forward = forward


@contextmanager
def _without(layers: list[Any]) -> Iterator[None]:
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


@contextmanager
def _attached(
    denoiser: nn.Module, state: dict[str, Tensor], layers: list[Any], family: ModelFamily
) -> Iterator[None]:
    # peft warns of a second adapter, which here is meant.
    config = denoiser.__dict__.pop("peft_config", None)
    try:
        peft_reader.attach(state, denoiser, family)
        for layer in layers:
            layer.set_adapter(peft_reader.ADAPTER)
        yield
    finally:
        for layer in layers:
            layer.set_adapter(ADAPTER)
            layer.delete_adapter(peft_reader.ADAPTER)
        denoiser.__dict__.pop("peft_config", None)
        if config is not None:
            denoiser.__dict__["peft_config"] = config

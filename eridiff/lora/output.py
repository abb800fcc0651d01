"""The last proof of a LoRA file: with it, the base computes what the trained model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eridiff.errors import ModelError
from eridiff.families.attention.projections import TOGETHER
from eridiff.families.checkpoints.loranames import Format
from eridiff.families.frozen.linear import quantization_of
from eridiff.lora import peft_reader
from eridiff.lora.adapters import Lora
from eridiff.lora.encoders import NO_ENCODERS, Encoders
from eridiff.lora.inject import ADAPTER
from eridiff.lora.read import read_lora
from eridiff.lora.verify import readers_of, stored

if TYPE_CHECKING:
    from eridiff.families.base import ModelFamily

_OF_EFFECT = 0.02
"""Share of the LoRA's effect that rounding its factors may change."""
_ROUNDINGS = 24
"""Relative errors of the denoiser's type that may add up on the way to its output."""
_PEFT_NOTES = ("peft_config", "_hf_peft_config_loaded")
"""Where diffusers and transformers note on a model which adapters it has."""


@torch.no_grad()
def check_output(
    path: Path,
    trained: Lora,
    denoiser: nn.Module,
    family: ModelFamily,
    predict: Callable[[], Tensor],
    *,
    file_format: Format,
    encoders: Encoders = NO_ENCODERS,
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
        encoders: text encoders as they were trained, adapters inside, if `predict` goes through any.

    Returns:
        Norm of the difference, as a share of the LoRA's effect; 0 where the LoRA has none yet.

    Raises:
        ModelError: the difference is more than rounding explains.
    """
    if "diffusers" in readers_of(trained, family, file_format):
        state = stored(path)
    else:
        state = read_lora(path, family, structure=trained.structure).peft_state()
    models = (denoiser, *encoders.values())
    layers: list[Any] = [
        module for model in models for module in model.modules() if hasattr(module, "lora_A")
    ]
    # Compiled parts would be compiled again for the other adapter: three passes do not pay for that.
    with _plain_forward(models, layers), torch.compiler.set_stance("force_eager"):
        wanted = predict().float()
        with _without(layers):
            effect = float((wanted - predict().float()).norm())
        with _attached(denoiser, encoders, state, layers, family):
            error = float((predict().float() - wanted).norm())
    computed = _precision(denoiser) * float(wanted.norm())
    if not error <= _OF_EFFECT * effect + _ROUNDINGS * computed:
        raise ModelError(
            "with the LoRA file, the base computes something else than the trained model",
            where=path,
            found=f"a difference of {error:.3g} where the LoRA's effect is {effect:.3g}",
            fix="the file is not published; please report this",
        )
    return error / effect if effect else 0.0


def _precision(denoiser: nn.Module) -> float:
    """The relative error of the denoiser's products."""
    own = torch.finfo(next(denoiser.parameters()).dtype).eps
    # Inputs are rounded to fp8: of those that differ at all, some then differ by an eighth. Taken together,
    # that is no more than bfloat16's own error.
    return max(own, torch.finfo(torch.bfloat16).eps) if quantization_of(denoiser) == "fp8" else own


@contextmanager
def _plain_forward(models: Iterable[nn.Module], layers: list[Any]) -> Iterator[None]:
    """Let layers compute as their class says, whatever was put into them or around them for training."""
    replaced = [(layer, "forward", layer.__dict__.pop("forward", None)) for layer in layers]
    # A product of several layers knows the trained adapter only.
    replaced += [(m, TOGETHER, m.__dict__.pop(TOGETHER, None)) for model in models for m in model.modules()]
    try:
        yield
    finally:
        for module, name, own in replaced:
            if own is not None:
                setattr(module, name, own)


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
    denoiser: nn.Module,
    encoders: Encoders,
    state: dict[str, Tensor],
    layers: list[Any],
    family: ModelFamily,
) -> Iterator[None]:
    with _forgotten((denoiser, *encoders.values())), _memory_kept(encoders.values()):
        try:
            peft_reader.attach(state, denoiser, family, encoders)
            for layer in layers:
                _lay_beside(layer)
                layer.set_adapter(peft_reader.ADAPTER)
            yield
        finally:
            for layer in layers:
                layer.set_adapter(ADAPTER)
                layer.delete_adapter(peft_reader.ADAPTER)


def _lay_beside(layer: Any) -> None:
    """Moves a file's factors to the trained ones: peft puts them beside weights that may stay away."""
    for factors in (layer.lora_A, layer.lora_B):
        factors[peft_reader.ADAPTER].to(factors[ADAPTER].weight.device)


@contextmanager
def _memory_kept(encoders: Iterable[nn.Module]) -> Iterator[None]:
    """Parameters that lie afterwards where they lay before: diffusers casts all of a text encoder's."""
    own = [(parameter, parameter.data) for model in encoders for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, data in own:
            parameter.data = data


@contextmanager
def _forgotten(models: Iterable[nn.Module]) -> Iterator[None]:
    """Models that know nothing of an adapter: of a second one, which here is meant, peft would warn."""
    own = [(model, {name: model.__dict__.pop(name, None) for name in _PEFT_NOTES}) for model in models]
    try:
        yield
    finally:
        for model, notes in own:
            for name, note in notes.items():
                model.__dict__.pop(name, None)
                if note is not None:
                    model.__dict__[name] = note

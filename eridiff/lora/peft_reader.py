"""What diffusers' `load_lora_weights` makes of a LoRA file."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eridiff.lora.adapters import Adapter
from eridiff.lora.encoders import NO_ENCODERS, Encoders, parameter_name
from eridiff.quiet import unsaid, without_loading_bar

if TYPE_CHECKING:
    from eridiff.families.base import ModelFamily

ADAPTER = "gate"
"""The adapter's name in the denoiser."""


def load(
    state: Mapping[str, Tensor],
    denoiser: nn.Module,
    family: ModelFamily,
    encoders: Encoders = NO_ENCODERS,
) -> dict[str, Adapter]:
    """The adapters that models of these configurations get, by component and module; without any weights."""
    import diffusers

    component = family.checkpoint.denoiser
    kind: Any = getattr(diffusers, family.checkpoint.models[component].class_name)
    with torch.device("meta"):
        bare = _hollow(kind.from_config(denoiser.config))
        bare_encoders = {name: _hollow(_like(model)) for name, model in encoders.items()}
    attach(state, bare, family, bare_encoders)
    found = {f"{component}.{name}": adapter for name, adapter in _adapters(bare)}
    for encoder, model in bare_encoders.items():
        found |= {parameter_name(encoder, name): adapter for name, adapter in _adapters(model)}
    return found


def attach(
    state: Mapping[str, Tensor],
    denoiser: nn.Module,
    family: ModelFamily,
    encoders: Encoders = NO_ENCODERS,
) -> None:
    """Puts a LoRA into a denoiser and text encoders as `ADAPTER`, the way a user's pipeline does."""
    import diffusers

    # Pipelines name classes for reading images, which nothing here uses.
    with unsaid("transformers.utils.import_utils", "requires torchvision"):
        kind = getattr(diffusers, family.checkpoint.pipelines[0])
    needed = [
        name
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and parameter.default is inspect.Parameter.empty
    ]
    pipeline = kind(**{**dict.fromkeys(needed), family.checkpoint.denoiser: denoiser, **encoders})
    # It says of each text encoder that is not there that it gets no LoRA: as it should be.
    # And of a text encoder's other adapter that it is not in the file.
    with (
        without_loading_bar(),
        unsaid("diffusers.loaders.lora_base", "associated to NoneType"),
        unsaid("transformers.integrations.peft", "MISSING"),
    ):
        pipeline.load_lora_weights(dict(state), adapter_name=ADAPTER)


def _like(model: Any) -> nn.Module:
    """A further model of the same class and configuration."""
    return type(model)(model.config)


def _adapters(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            yield name, _attached(module)


def _attached(layer: Any) -> Adapter:
    """The adapter inside a layer of peft."""
    return Adapter(
        layer.lora_A[ADAPTER].weight.detach(),
        layer.lora_B[ADAPTER].weight.detach(),
        layer.scaling[ADAPTER] * layer.r[ADAPTER],
    )


def _hollow(model: nn.Module) -> nn.Module:
    """A model whose every weight is one stretched zero: no memory, yet on the CPU, as readers expect it."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zeros = torch.zeros(1, device="cpu").expand(parameter.shape)
            setattr(module, name, nn.Parameter(zeros, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros(1, dtype=buffer.dtype, device="cpu").expand(buffer.shape))
    return model

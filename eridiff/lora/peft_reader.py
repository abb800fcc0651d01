"""What diffusers' `load_lora_weights` makes of a LoRA file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eridiff.lora.adapters import Adapter
from eridiff.quiet import unsaid

if TYPE_CHECKING:
    from eridiff.families.base import ModelFamily

ADAPTER = "gate"
"""The adapter's name in the denoiser."""


def load(state: Mapping[str, Tensor], denoiser: nn.Module, family: ModelFamily) -> dict[str, Adapter]:
    """The adapters that a denoiser of this configuration gets, by module; no weights are needed for that."""
    import diffusers

    kind: Any = getattr(diffusers, family.checkpoint.models[family.checkpoint.denoiser].class_name)
    with torch.device("meta"):
        bare = _hollow(kind.from_config(denoiser.config))
    attach(state, bare, family)
    return {name: _attached(module) for name, module in bare.named_modules() if hasattr(module, "lora_A")}


def attach(state: Mapping[str, Tensor], denoiser: nn.Module, family: ModelFamily) -> None:
    """Puts a LoRA into a denoiser as `ADAPTER`, the way a user's pipeline does."""
    import diffusers

    # Pipelines name classes for reading images, which nothing here uses.
    with unsaid("transformers.utils.import_utils", "requires torchvision"):
        kind = getattr(diffusers, family.checkpoint.pipelines[0])
    needed = [
        name
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and parameter.default is inspect.Parameter.empty
    ]
    pipeline = kind(**{**dict.fromkeys(needed), family.checkpoint.denoiser: denoiser})
    # It says of each text encoder that is not there that it gets no LoRA: as it should be.
    with unsaid("diffusers.loaders.lora_base", "associated to NoneType"):
        pipeline.load_lora_weights(dict(state), adapter_name=ADAPTER)


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
    return model

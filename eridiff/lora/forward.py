"""What a LoRA layer computes while it is trained: in its input's precision, without a detour.

peft turns a layer's input into float32, the type of its factors, and the result back. On large inputs these
copies cost more than the LoRA's products. Here the small factors are rounded instead, each step anew from the
float32 values; their gradients are float32 again.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from eridiff.lora.inject import ADAPTER


def compute_in_input_precision(model: nn.Module) -> None:
    """Lets every LoRA layer of a model compute `base(x) + up(down(x)) * scale` in the dtype of x.

    The layers' parameters, names and gradients stay as peft made them: float32.
    """
    from peft.tuners.lora import Conv2d, Linear

    for module in model.modules():
        if isinstance(module, Linear):
            module.forward = MethodType(_linear, module)
        elif isinstance(module, Conv2d):
            module.forward = MethodType(_conv, module)


def _linear(layer: Any, x: Tensor) -> Tensor:
    base = layer.base_layer(x)
    if layer.disable_adapters:
        return base
    down, up = _factors(layer, x)
    return base + functional.linear(functional.linear(x, down), up)


def _conv(layer: Any, x: Tensor) -> Tensor:
    base = layer.base_layer(x)
    if layer.disable_adapters:
        return base
    down, up = _factors(layer, x)
    inner = layer.lora_A[ADAPTER]
    narrow = functional.conv2d(x, down, None, inner.stride, inner.padding, inner.dilation, inner.groups)
    return base + functional.conv2d(narrow, up)


def _factors(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors in x's dtype, the scale in the second: multiplied in float32, rounded once."""
    up = layer.lora_B[ADAPTER].weight * layer.scaling[ADAPTER]
    return layer.lora_A[ADAPTER].weight.to(x.dtype), up.to(x.dtype)

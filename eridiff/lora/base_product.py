"""What the layers under a LoRA multiply by: weights, or codes of fp8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from eridiff.families.frozen import fp8
from eridiff.families.frozen.linear import FrozenLinear


@dataclass(frozen=True)
class BaseProduct:
    """The frozen product `x W' + b` of one layer, or of several of one input.

    Attributes:
        weight: `[out, in]`, the layers' weights one below the other; codes of fp8 where there are scales.
        scales: `[out]` float32, of the codes.
        bias: `[out]`.
    """

    weight: Tensor
    scales: Tensor | None
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """The product for x `[..., in]`, differentiable in x."""
        if self.scales is None:
            return functional.linear(x, self.weight, self.bias)
        height, width = self.weight.shape
        found = fp8.product(x, self.weight, self.scales, (height, width))
        return found if self.bias is None else found + self.bias


def has_base_product(layer: nn.Module) -> bool:
    """Whether a layer multiplies as a `BaseProduct` does."""
    return type(layer) is nn.Linear or (isinstance(layer, FrozenLinear) and layer.form == "fp8")


def base_product(layer: Any) -> BaseProduct:
    """What a layer multiplies by just now: weights that come and go are others each time."""
    if isinstance(layer, FrozenLinear):
        return BaseProduct(layer.codes, layer.scales, layer.bias)
    return BaseProduct(layer.weight, None, layer.bias)


def join(layers: Sequence[Any]) -> BaseProduct:
    """What layers multiply by, one below the other, of which theirs are views from here on."""
    heights = [layer.out_features for layer in layers]

    def whole(name: str) -> Any:
        parts = [getattr(layer, name) for layer in layers]
        if parts[0] is None:
            return None
        values = torch.cat([part.detach() for part in parts])
        for part, view in zip(parts, values.split(heights), strict=True):
            part.data = view
        return nn.Parameter(values, requires_grad=False) if isinstance(parts[0], nn.Parameter) else values

    if isinstance(layers[0], FrozenLinear):
        return BaseProduct(whole("codes"), whole("scales"), whole("bias"))
    return BaseProduct(whole("weight"), None, whole("bias"))

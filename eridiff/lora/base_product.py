"""What the layers under a LoRA multiply by: weights, or codes of int8 and fp8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from eridiff.families.frozen import fp8, int8
from eridiff.families.frozen.linear import FrozenLinear

_CODED = {torch.int8: int8, torch.uint8: fp8}
"""The type of codes to their products; other forms keep more than codes and a scale a row."""


@dataclass(frozen=True)
class BaseProduct:
    """The frozen product `x W' + b` of one layer, or of several of one input.

    Attributes:
        weight: `[out, in]`, the layers' weights one below the other; codes where there are scales.
        scales: `[out]`, of the codes.
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
        found = _CODED[self.weight.dtype].product(x, self.weight, self.scales, (height, width))
        return found if self.bias is None else found + self.bias

    def forward(self, rows: Tensor) -> Tensor:
        """The product for rows `[n, in]`; not differentiable."""
        if self.scales is None:
            return functional.linear(rows, self.weight, self.bias)
        return _CODED[self.weight.dtype].forward(rows, self.weight, self.scales, self.bias)

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient of the rows, `[n, in]`, for that of the product, `[n, out]`."""
        if self.scales is None:
            return gradient @ self.weight
        return _CODED[self.weight.dtype].backward(gradient, self.weight, self.scales)


def has_base_product(layer: nn.Module) -> bool:
    """Whether a layer multiplies as a `BaseProduct` does."""
    return type(layer) is nn.Linear or (isinstance(layer, FrozenLinear) and layer.form in ("int8", "fp8"))


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

"""What LoRA layers compute while they are trained: in their input's precision, without a detour.

peft turns a layer's input into float32, the type of its factors, and the result back. On large inputs these
copies cost more than the LoRA's products. Here the small factors are rounded instead: each when it is needed,
or all of them ahead by `rounding`. Their gradients are float32 again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from eridiff.families.attention.projections import TOGETHER, groups_of
from eridiff.lora.base_product import base_product, has_base_product, join
from eridiff.lora.inject import ADAPTER
from eridiff.lora.products import lora_linear


@dataclass(frozen=True)
class Factors:
    """Factors of LoRA layers of one input, in the dtype of their products.

    Attributes:
        down: the layers' one below the other, `[rank, in, ...]`.
        ups: each layer's, `[out_i, rank_i, ...]`.
    """

    down: Tensor
    ups: tuple[Tensor, ...]


class LoraForward:
    """The forward pass of LoRA layers of one input.

    Attributes:
        layers: peft's.
        rounded: their factors, while a pass has them ready.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = tuple(layers)
        self.rounded: Factors | None = None
        self._scales = [layer.scaling[ADAPTER] for layer in layers]

    @property
    def downs(self) -> list[Tensor]:
        """The layers' first factors, float32."""
        return [layer.lora_A[ADAPTER].weight for layer in self.layers]

    @property
    def ups(self) -> list[Tensor]:
        """The layers' second factors, float32."""
        return [layer.lora_B[ADAPTER].weight for layer in self.layers]

    def _factors(self, dtype: torch.dtype) -> Factors:
        if self.rounded is not None and self.rounded.down.dtype == dtype:
            return self.rounded
        downs = [down.to(dtype) for down in self.downs]
        down = downs[0] if len(downs) == 1 else torch.cat(downs)
        return Factors(down, tuple(up.to(dtype) for up in self.ups))

    @property
    def _off(self) -> bool:
        return self.layers[0].disable_adapters


class Beside(LoraForward):
    """One layer, whose base computes by itself: a convolution, or weights in few bits."""

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output for x."""
        (layer,), (scale,) = self.layers, self._scales
        base = layer.base_layer(x)
        if self._off:
            return base
        factors = self._factors(x.dtype)
        (up,) = factors.ups
        if up.dim() == 2:
            return base + functional.linear(functional.linear(x, factors.down) * scale, up)
        inner = layer.lora_A[ADAPTER]
        narrow = functional.conv2d(
            x, factors.down, None, inner.stride, inner.padding, inner.dilation, inner.groups
        )
        return base + functional.conv2d(narrow * scale, up)


class Dense(LoraForward):
    """Linear layers in one product, whose weights lie together from here on if they are several."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__(layers)
        bases = [layer.base_layer for layer in layers]
        self._joined = join(bases) if len(bases) > 1 else None

    def __call__(self, x: Tensor) -> Tensor:
        """The layers' outputs for x `[..., in]` side by side, `[..., out]`."""
        base = self._joined or base_product(self.layers[0].base_layer)
        if self._off:
            return base(x)
        factors = self._factors(x.dtype)
        return lora_linear(x, base, factors.down, factors.ups, self._scales)


class Apart:
    """The outputs of dense layers that are one product, each for itself."""

    def __init__(self, product: Dense) -> None:
        self.product = product
        self._heights = [layer.out_features for layer in product.layers]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """For x `[..., in]` each layer's `[..., out_i]`, a view of columns."""
        return self.product(x).split(self._heights, dim=-1)


def compute_in_input_precision(model: nn.Module) -> None:
    """Lets every LoRA layer of a model compute `base(x) + up(down(x)) * scale` in the dtype of x.

    The layers' parameters, names and gradients stay as peft made them: float32.
    """
    from peft.tuners.lora import Conv2d, Linear

    for module in model.modules():
        if isinstance(module, Linear | Conv2d):
            layer: Any = module
            layer.product = (Dense if has_base_product(layer.base_layer) else Beside)([layer])
            # One function for all, bound to each: compilers tell blocks apart by what `forward` is.
            layer.forward = MethodType(_forward, layer)


def join_projections(model: nn.Module) -> None:
    """Lets attention make queries, keys and values in one product, where all their layers have LoRA.

    Call `compute_in_input_precision` before. The layers' weights move: each group's are one below the other.
    """
    for module in model.modules():
        joined = {names: _join([getattr(module, name) for name in names]) for names in groups_of(module)}
        setattr(module, TOGETHER, {names: apart for names, apart in joined.items() if apart is not None})


def lora_forwards(model: nn.Module) -> list[LoraForward]:
    """What computes a model's LoRA layers: joined layers' products, and those of all others."""
    products = [
        apart.product for module in model.modules() for apart in getattr(module, TOGETHER, {}).values()
    ]
    joined = {layer for product in products for layer in product.layers}
    alone = [getattr(module, "product", None) for module in model.modules() if module not in joined]
    return products + [product for product in alone if isinstance(product, LoraForward)]


def _forward(layer: Any, x: Tensor) -> Tensor:
    return layer.product(x)


def _join(layers: Sequence[nn.Module]) -> Apart | None:
    products = [getattr(layer, "product", None) for layer in layers]
    if not all(isinstance(product, Dense) for product in products):
        return None
    alike = {
        (layer.in_features, type(layer.base_layer), layer.base_layer.bias is None)
        for layer in cast(Any, layers)
    }
    return Apart(Dense(layers)) if len(alike) == 1 else None

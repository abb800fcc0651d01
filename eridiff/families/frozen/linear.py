"""A linear layer with its weight in few bits; whatever the bits, a LoRA beside it trains the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eridiff.families.frozen import fp8, int8, nf4
from eridiff.families.frozen.keep import Quantization, is_quantised

Sides = tuple[int, int]


@dataclass(frozen=True)
class Form:
    """A way to keep a weight `[out, in]`.

    Attributes:
        pack: codes and scales of a weight.
        dense: the float32 weight that codes and scales of these sides stand for.
        product: `x @ weight.T`, differentiable in x.
    """

    pack: Callable[[Tensor], tuple[Tensor, Tensor]]
    dense: Callable[[Tensor, Tensor, Sides], Tensor]
    product: Callable[[Tensor, Tensor, Tensor, Sides], Tensor]


FORMS: Mapping[Quantization, Form] = {
    "int8": Form(int8.pack, int8.dense, int8.product),
    "nf4": Form(nf4.pack, nf4.dense, nf4.product),
    "fp8": Form(fp8.pack, fp8.dense, fp8.product),
}


class FrozenLinear(nn.Linear):
    """A linear layer that multiplies by codes of `form` and their scales.

    Codes and scales are plain tensors, so that whatever moves, hides or compiles a layer does so with this
    one. `weight` is a stand-in without memory: peft and diffusers look at its shape and its device, and take
    its name in a state dictionary.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear, form: Quantization) -> None:
        """Takes the sides of `layer`, without values: `take` brings them."""
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.form: Quantization = form
        for name in ("codes", "scales"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.requires_grad_(False)

    def take(self, weight: Tensor, device: torch.device) -> None:
        """Packs a weight `[out, in]` where it lies, and keeps what comes of it on `device`."""
        codes, scales = FORMS[self.form].pack(weight)
        self.codes, self.scales = codes.to(device), scales.to(device)
        nothing = torch.zeros(1, dtype=torch.uint8, device=weight.device)
        self.weight = nn.Parameter(nothing.expand(self.sides), requires_grad=False)

    @property
    def sides(self) -> Sides:
        """Rows and columns of the weight."""
        return self.out_features, self.in_features

    def dense(self) -> Tensor:
        """The weight that is multiplied by, `[out, in]` float32."""
        return FORMS[self.form].dense(self.codes, self.scales, self.sides)

    def forward(self, input: Tensor) -> Tensor:
        """`input @ weight.T + bias` for an input `[..., in]`."""
        found = FORMS[self.form].product(input, self.codes, self.scales, self.sides)
        return found if self.bias is None else found + self.bias


def quantise_linears(model: nn.Module, blocks: str, form: Quantization) -> None:
    """Puts empty `FrozenLinear`s in the place of a model's layers that are kept in fewer bits.

    Args:
        model: without values, on the meta device.
        blocks: regular expression of its repeated blocks' names.
        form: how they are kept.
    """
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        if is_quantised(f"{name}.weight", (layer.out_features, layer.in_features), blocks, form):
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, FrozenLinear(layer, form))


def quantization_of(model: nn.Module) -> Quantization:
    """What a model's layers are kept in; `none` where all are as they were."""
    forms: list[Quantization] = [m.form for m in model.modules() if isinstance(m, FrozenLinear)]
    return forms[0] if forms else "none"

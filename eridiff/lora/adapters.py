"""A LoRA in memory: for each adapted module two factors and a scale, under diffusers' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Adapter:
    """The change of one weight: `alpha / rank * up @ down`.

    Attributes:
        down: `[rank, in]`, or `[rank, in, kh, kw]` for a convolution.
        up: `[out, rank]`, or `[out, rank, 1, 1]`.
        alpha: scale, multiplied by the rank.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank

    def change(self) -> Tensor:
        """The change of the weight in float64, in the weight's shape."""
        product = self.up.double().flatten(1) @ self.down.double().flatten(1)
        return (self.scale * product).view(self.up.shape[0], *self.down.shape[1:])

    def folded(self) -> Adapter:
        """The same change with its scale inside `up`, so that alpha is the rank."""
        return self.with_alpha(float(self.rank))

    def with_alpha(self, alpha: float) -> Adapter:
        """The same change with another alpha, the ratio of the two inside `up`."""
        if alpha == self.alpha:
            return self
        return replace(self, up=(self.up.float() * (self.alpha / alpha)).to(self.up.dtype), alpha=alpha)

    def to(self, dtype: torch.dtype) -> Adapter:
        """With factors of another type, in memory of their own on the CPU."""
        return replace(self, down=_kept(self.down, dtype), up=_kept(self.up, dtype))


@dataclass(frozen=True)
class Lora:
    """A set of adapters.

    Attributes:
        layers: folder name of the component and module, such as `unet.mid_block...to_q`, to adapter. Modules
            of CLIP always have their level `text_model`, whether or not the installed transformers has it.
        structure: counts of the denoiser's blocks.
        metadata: free-form strings of the file it came from.
    """

    layers: Mapping[str, Adapter]
    structure: Mapping[str, int]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def peft_state(self) -> dict[str, Tensor]:
        """What diffusers' `load_lora_weights` takes: float32, scales folded in."""
        import torch

        state: dict[str, Tensor] = {}
        for name, adapter in self.layers.items():
            folded = adapter.to(torch.float32).folded()
            state[f"{name}.lora_A.weight"] = folded.down
            state[f"{name}.lora_B.weight"] = folded.up
        return state


def _kept(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype).contiguous()

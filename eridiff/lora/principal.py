"""LoRA that starts as a part of the weight itself, written as a change of the whole weight.

PiSSA (Meng et al. 2024, https://arxiv.org/abs/2404.02948) takes the principal part s·B₀A₀ out of a weight W,
freezes the rest, and trains s·BA from there; OLoRA (Büyükakyüz 2024) does so with a QR decomposition. What
they compute is W + s(BA − B₀A₀), and

    BA − B₀A₀ = (B − B₀) A + B₀ (A − A₀),

a LoRA of twice the rank. Here the layer computes just that, beside the whole W, with the gradients that the
method has. So the base is never changed, and at strength 0 it is itself; W − s·B₀A₀ is not rounded to the
base's type; and no two large products are subtracted, neither in the model's precision nor in the file's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from eridiff.diffusion.randomness import generator
from eridiff.errors import RecipeError
from eridiff.lora.adapters import Adapter

_KEPT = (torch.float32, torch.bfloat16, torch.float16)
_PLACE = ".parametrizations."


def start_from_weights(model: nn.Module, init: str, *, adapter: str, seed: int) -> None:
    """Sets the factors of LoRA layers to a part of their weights, and lets them be changes from there.

    A layer's own parameters stay A and B; what its `lora_A` and `lora_B` multiply by is twice as wide.

    Args:
        model: with a LoRA in it, of linear layers.
        init: as peft's `init_lora_weights`: `pissa`, `pissa_niter_16` or `olora`.
        adapter: the LoRA's name in the model.
        seed: decides the approximation of `pissa_niter_16`, with the module's name.

    Raises:
        RecipeError: a weight is quantised, or has no such rank.
    """
    layers: list[tuple[str, Any]] = [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_A")]
    for name, layer in layers:
        _refuse_unfit(name, layer, init, adapter)
        with _base_kept(layer), _seeded(generator(seed, "lora", name).initial_seed()):
            _decompose(layer, init, adapter)
        _follow(layer.lora_A[adapter], _Down)
        _follow(layer.lora_B[adapter], _Up)


def offset(now: Adapter, start: Adapter) -> Adapter:
    """The change from one adapter to another of equal rank and alpha, as one of twice both.

    It lies where `now` does: on a CPU where a file is written, whereas the start is the layer's own.
    """
    down, up = start.down.to(now.down.device), start.up.to(now.up.device)
    return Adapter(_Down.of(now.down, down), _Up.of(now.up, up), 2 * now.alpha)


def starts(model: nn.Module) -> dict[str, Tensor]:
    """Where factors started that are changes from there, by the factor's place in the model.

    They are the layers' own memory: who writes to them moves the start.
    """
    return {
        name.partition(_PLACE)[0]: module.start
        for name, module in model.named_modules()
        if isinstance(module, Start)
    }


class Start(nn.Module):
    """A factor's start, `[rank, in]` or `[out, rank]` float32, kept while the factor is trained."""

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start, persistent=False)


class _Down(Start):
    """`A` below which stands its change: `[2 rank, in]`."""

    @staticmethod
    def of(now: Tensor, start: Tensor) -> Tensor:
        return torch.cat([now, now - start])

    def forward(self, now: Tensor) -> Tensor:
        return self.of(now, self.start)


class _Up(Start):
    """The change of `B` beside its start: `[out, 2 rank]`."""

    @staticmethod
    def of(now: Tensor, start: Tensor) -> Tensor:
        return torch.cat([now - start, start], dim=1)

    def forward(self, now: Tensor) -> Tensor:
        return self.of(now, self.start)


def _refuse_unfit(name: str, layer: Any, init: str, adapter: str) -> None:
    base = layer.get_base_layer()
    if type(base) is not nn.Linear or base.weight.dtype not in _KEPT:
        raise RecipeError(
            f"{init} starts from the base's weights, which are not kept whole",
            where="network.init",
            found=f"{name} is a {type(base).__name__}",
            fix="set network.init: kaiming, or model.quantize: none",
        )
    rank, most = layer.r[adapter], min(base.weight.shape)
    if rank > most:
        raise RecipeError(
            f"{init} takes no more than a weight has",
            where="network.init",
            found=f"rank {rank} of {name}, whose weight is {' x '.join(map(str, base.weight.shape))}",
            wanted=f"at most {most}",
            fix="set a lower network.linear, or a rank for it in network.ranks",
        )


def _follow(factor: nn.Module, kind: type[Start]) -> None:
    weight = factor.weight
    assert isinstance(weight, nn.Parameter)
    weight.data = weight.data.float().contiguous()
    parametrize.register_parametrization(factor, "weight", kind(weight.detach().clone()), unsafe=True)


def _decompose(layer: Any, init: str, adapter: str) -> None:
    with torch.no_grad():
        if init == "olora":
            layer.olora_init(adapter)
        else:
            layer.pissa_init(adapter, init)


@contextmanager
def _base_kept(layer: Any) -> Iterator[None]:
    """Puts the weight back that peft takes a part out of."""
    base = layer.get_base_layer()
    weight = base.weight.data
    base.weight.data = weight.clone()
    try:
        yield
    finally:
        base.weight.data = weight


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws of torch's own generators, as from a seed; afterwards they go on as if nothing was drawn."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield

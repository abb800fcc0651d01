from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from eridiff.families.attention.projections import TOGETHER, groups_of, projected
from tests.families.samples import CAPTIONS, conditioning

WIDTHS = {"to_q": 6, "to_k": 6, "to_v": 4}


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


class OneProduct:
    """Layers of one input by one product of their weights, stacked."""

    def __init__(self, layers: list[Any]) -> None:
        self.widths = [layer.out_features for layer in layers]
        self.weight = torch.cat([layer.weight for layer in layers])
        self.bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        self.calls = 0

    def __call__(self, tokens: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        return linear(tokens, self.weight, self.bias).split(self.widths, dim=-1)


def joined(attn: nn.Module) -> dict[tuple[str, ...], OneProduct]:
    found = {group: OneProduct([getattr(attn, name) for name in group]) for group in groups_of(attn)}
    setattr(attn, TOGETHER, found)
    return found


@pytest.fixture
def layers() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(5, width) for name, width in WIDTHS.items()})


def test_layers_project_by_themselves(layers: nn.ModuleDict) -> None:
    tokens = torch.randn(2, 3, 5)
    found = projected(layers, tokens, *WIDTHS)
    assert len(found) == 3
    for one, layer in zip(found, layers.values(), strict=True):
        assert torch.equal(one, layer(tokens))


def test_only_the_named_group_is_projected_together(layers: nn.ModuleDict) -> None:
    tokens = torch.randn(2, 3, 5)
    product = OneProduct([layers["to_k"], layers["to_v"]])
    setattr(layers, TOGETHER, {("to_k", "to_v"): product})
    wanted = [layers[name](tokens) for name in WIDTHS]
    for one, two in zip(projected(layers, tokens, *WIDTHS), wanted, strict=True):
        assert torch.equal(one, two)
    assert product.calls == 0
    for one, two in zip(projected(layers, tokens, "to_k", "to_v"), wanted[1:], strict=True):
        torch.testing.assert_close(one, two)
    assert product.calls == 1


@pytest.mark.parametrize("filled", [False, True])
def test_it_compiles_whole(layers: nn.ModuleDict, filled: bool) -> None:
    tokens, weights = torch.randn(2, 3, 5), list(layers.parameters())

    def run(tokens: Tensor) -> Tensor:
        return torch.cat(projected(layers, tokens, *WIDTHS), dim=-1).square().sum()

    wanted = torch.autograd.grad(run(tokens), weights)
    if filled:
        setattr(layers, TOGETHER, {tuple(WIDTHS): lambda tokens: _by_one_product(layers, tokens)})
    found = torch.autograd.grad(torch.compile(run, backend="aot_eager", fullgraph=True)(tokens), weights)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)


def _by_one_product(layers: nn.ModuleDict, tokens: Tensor) -> tuple[Tensor, ...]:
    rows: list[Any] = [layers[name] for name in WIDTHS]
    weight, bias = torch.cat([row.weight for row in rows]), torch.cat([row.bias for row in rows])
    return linear(tokens, weight, bias).split(list(WIDTHS.values()), dim=-1)


def predicted(tiny: Any, denoiser: nn.Module) -> Tensor:
    noisy = torch.randn(2, tiny.family.latent.channels, 16, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        cond = conditioning(tiny.family.encode_prompts(tiny.encoders, CAPTIONS))
        return tiny.family.predict(denoiser, noisy, torch.tensor([0.3, 0.8]), cond)


def test_every_group_of_a_denoiser_is_asked_for_once_a_pass(tiny: Any) -> None:
    denoiser = copy.deepcopy(tiny.denoiser)
    products = [one for module in denoiser.modules() if groups_of(module) for one in joined(module).values()]
    assert len(products) >= 4
    torch.testing.assert_close(
        predicted(tiny, denoiser), predicted(tiny, tiny.denoiser), rtol=1e-4, atol=1e-5
    )
    assert {product.calls for product in products} == {1}


def test_the_groups_cover_every_projection(tiny: Any) -> None:
    for module in tiny.denoiser.modules():
        names = [name for group in groups_of(module) for name in group]
        projections = {name for name, _ in module.named_children() if name.startswith(("to_", "add_"))}
        alone = {"to_q"} if getattr(module, "is_cross_attention", False) else set()
        if hasattr(module, "processor"):
            assert projections == {*names, *alone} | (projections & {"to_out", "to_add_out"})

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from eridiff.families.frozen import fp8, int8
from eridiff.lora.base_product import BaseProduct
from eridiff.lora.products import lora_linear

SCALES = (0.5, 1.0)
HEIGHTS, RANKS, WIDTH = (5, 6), (4, 2), 12


def inputs(
    *, bias: bool = True, of_input: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, list[Tensor]]:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    x = normal(2, 7, WIDTH).requires_grad_(of_input)
    ups = [normal(height, rank).requires_grad_() for height, rank in zip(HEIGHTS, RANKS, strict=True)]
    return (
        x,
        normal(sum(HEIGHTS), WIDTH),
        normal(sum(HEIGHTS)) if bias else None,
        normal(sum(RANKS), WIDTH).requires_grad_(),
        ups,
    )


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, ups: list[Tensor]) -> Tensor:
    changes = [
        scale * linear(linear(x, part), up)
        for part, up, scale in zip(down.split(RANKS), ups, SCALES, strict=True)
    ]
    return linear(x, weight, bias) + torch.cat(changes, dim=-1)


def fused(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, ups: list[Tensor]) -> Tensor:
    return lora_linear(x, BaseProduct(weight, None, bias), down, ups, SCALES)


def output_and_gradients(run: Callable[..., Tensor], **settings: bool) -> list[Tensor]:
    x, weight, bias, down, ups = inputs(**settings)
    trained = [tensor for tensor in (x, down, *ups) if tensor.requires_grad]
    output = run(x, weight, bias, down, ups)
    upstream = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, trained, upstream)]


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"of_input": False}])
@pytest.mark.parametrize("compiled", [False, True])
def test_products_and_gradients_are_those_of_each_layer_for_itself(
    settings: dict[str, bool], compiled: bool
) -> None:
    run = torch.compile(fused, backend="aot_eager", fullgraph=True) if compiled else fused
    for found, wanted in zip(
        output_and_gradients(run, **settings), output_and_gradients(plain, **settings), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_what_comes_as_a_slice_of_something_wider_is_taken_as_it_is() -> None:
    x, weight, bias, down, ups = inputs()
    wide = torch.cat([x, x], dim=-1).detach()
    upstream = torch.ones(2, 7, 2 * sum(HEIGHTS), dtype=x.dtype)[..., ::2]
    found = torch.autograd.grad(fused(wide[..., :WIDTH], weight, bias, down, ups), ups, upstream)
    wanted = torch.autograd.grad(plain(x, weight, bias, down, ups), ups, upstream.contiguous())
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("form", [int8, fp8], ids=["int8", "fp8"])
def test_a_base_in_few_bits_is_multiplied_as_its_codes_are(form: Any, compiled: bool) -> None:
    x, weight, bias, down, ups = inputs()
    assert bias is not None
    x, down, bias = x.repeat(2, 2, 1).float(), down.float(), bias.float()  # rows enough for products of fp8
    ups = [up.float() for up in ups]
    codes, scales = form.pack(weight.float())

    def run(x: Tensor, codes: Tensor, scales: Tensor, down: Tensor, ups: list[Tensor]) -> Tensor:
        return lora_linear(x, BaseProduct(codes, scales, bias), down, ups, SCALES)

    def one_by_one(x: Tensor, codes: Tensor, scales: Tensor, down: Tensor, ups: list[Tensor]) -> Tensor:
        return BaseProduct(codes, scales, bias)(x) + plain(
            x, torch.zeros_like(weight).float(), None, down, ups
        )

    fast = torch.compile(run, backend="aot_eager", fullgraph=True) if compiled else run
    results = []
    for function in (fast, one_by_one):
        output = function(x, codes, scales, down, ups)
        results.append([output.detach(), *torch.autograd.grad(output.square().sum(), (x, down, *ups))])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("quantised", [False, True])
def test_the_operators_tell_compilers_the_truth(quantised: bool) -> None:
    x, weight, bias, down, ups = (
        [one.detach() for one in tensor] if isinstance(tensor, list) else tensor.detach()
        for tensor in inputs()
    )
    scales = None
    if quantised:
        weight, scales = fp8.pack(weight.float())
    operators = torch.ops.eridiff
    arguments = (x, weight, scales, bias, down, ups, list(SCALES))
    torch.library.opcheck(operators.lora_linear.default, arguments)
    output, narrow = operators.lora_linear(*arguments)
    torch.library.opcheck(
        operators.lora_linear_backward.default,
        (output, x, narrow, weight, scales, down, ups, list(SCALES), True),
    )

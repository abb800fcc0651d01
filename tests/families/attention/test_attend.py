from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from eridiff.families.attention.attend import attend

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
COMPILERS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
BATCH, LENGTH, HEADS, WIDTH = 2, 24, 3, 8


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


class Seen(TorchDispatchMode):
    """Notes the strides of the gradients that kernels of attention are given."""

    def __init__(self) -> None:
        super().__init__()
        self.strides: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in str(func) and "backward" in str(func):
            self.strides.append(args[0].stride())
        return func(*args, **(kwargs or {}))


def plainly(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads_first = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    return scaled_dot_product_attention(heads_first[0], heads_first[1], heads_first[2]).transpose(1, 2)


def drawn(*, length: int = LENGTH, heads: int = HEADS, width: int = WIDTH, **kind: Any) -> list[Tensor]:
    """q, k, v `[B, S, H, D]`, others to lie beside them `[B, S, 4 H D]`, and weights that take all of it."""
    generator = torch.Generator().manual_seed(1)
    inner = heads * width
    shapes = [(BATCH, length, heads, width)] * 3 + [(BATCH, length, 4 * inner), (5 * inner, inner)]
    return [torch.randn(shape, generator=generator).to(**kind).requires_grad_() for shape in shapes]


def beside(attention: Attention) -> Callable[..., Tensor]:
    """Attention as a single block of Flux uses it: its output's gradient is a slice of a wider tensor."""

    def block(query: Tensor, key: Tensor, value: Tensor, others: Tensor, weight: Tensor) -> Tensor:
        mixed = attention(query, key, value).flatten(2)
        return (torch.cat([mixed, others], dim=2) @ weight).square().mean()

    return block


def compiled(function: Callable[..., Tensor], compiler: str) -> Callable[..., Tensor]:
    return function if compiler == "eager" else torch.compile(function, backend=compiler, fullgraph=True)


def seen_by(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[tuple[int, ...]]:
    loss = function(*inputs)
    with Seen() as seen:
        torch.autograd.grad(loss, inputs)
    return seen.strides


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_torchs_own_attention(dtype: torch.dtype) -> None:
    inputs = drawn(dtype=dtype)
    found, wanted = attend(*inputs[:3]), plainly(*inputs[:3])
    assert torch.equal(found, wanted)
    gradient = torch.randn_like(wanted)
    for one, two in zip(
        torch.autograd.grad(found, inputs[:3], gradient),
        torch.autograd.grad(wanted, inputs[:3], gradient),
        strict=True,
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_kernel_is_given_a_dense_gradient(compiler: str) -> None:
    inner = HEADS * WIDTH
    dense = (LENGTH * inner, WIDTH, inner, 1)  # of [B, H, S, D], as it lies where it is [B, S, H, D]
    assert seen_by(compiled(beside(attend), compiler), drawn()) == [dense]


def test_without_it_the_kernel_is_given_a_slice() -> None:
    wide = 5 * HEADS * WIDTH
    assert seen_by(beside(plainly), drawn()) == [(LENGTH * wide, WIDTH, wide, 1)]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_gradients_are_those_of_plain_attention(compiler: str) -> None:
    inputs = drawn()
    wanted = torch.autograd.grad(beside(plainly)(*inputs), inputs)
    block = compiled(beside(attend), compiler)
    for run in (block, lambda *inputs: checkpoint(block, *inputs, use_reentrant=False)):
        for found, right in zip(torch.autograd.grad(run(*inputs), inputs), wanted, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("joint", [False, True], ids=["apart", "joint"])
@pytest.mark.parametrize("length", [300, 437])
@pytest.mark.parametrize("width", [64, 128])
def test_cudnn_is_right_whichever_way_gradients_came_before(width: int, length: int, joint: bool) -> None:
    """Dense gradients first, then slices, and compiled: one plan of cuDNN's serves all."""
    inputs = drawn(length=length, heads=4, width=width, device="cuda", dtype=torch.bfloat16)
    if joint:  # as joint projections leave them
        wide = torch.cat([tensor.detach() for tensor in inputs[:3]], dim=2)
        inputs[:3] = [part.requires_grad_() for part in wide.chunk(3, dim=2)]

    def alone(*inputs: Tensor) -> Tensor:
        return attend(*inputs[:3]).square().mean()

    block = beside(attend)
    with sdpa_kernel(SDPBackend.MATH):
        wanted = [torch.autograd.grad(run(*inputs), inputs[:3]) for run in (alone, block)]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        runs = [(alone, wanted[0]), (block, wanted[1]), (compiled(block, "inductor"), wanted[1])]
        for run, right in runs:
            for one, two in zip(torch.autograd.grad(run(*inputs), inputs[:3]), right, strict=True):
                assert (one.float() - two.float()).norm() <= 0.02 * two.float().norm()

"""The benchmark of attention on a CPU, at a tiny shape: that it judges rightly, not what it measures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import attention
from benchmarks.attention import Case, Shape

CPU, TINY = torch.device("cpu"), Shape(1, 2, 16, 8, 8)


@pytest.fixture(autouse=True)
def _plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.BACKENDS, "math", attention.SDPBackend.MATH)


@pytest.mark.parametrize("gradients", attention.ORDERS)
@pytest.mark.parametrize("way", ["plain", "attend"])
def test_plain_products_are_right_however_gradients_lie(way: str, gradients: tuple[str, ...]) -> None:
    row = attention.measured(Case("tiny", TINY, "math", way, gradients), CPU)
    assert row["right"]
    assert row["gradients"] == ", ".join(gradients)


def test_a_kernel_that_is_not_there_is_a_row() -> None:
    row = attention.measured(Case("tiny", TINY, "cudnn", "plain", ("dense",)), CPU)
    assert row["right"] is False
    assert row["error"]


def test_wrong_gradients_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = attention.passes

    def spoilt(way: Callable[..., Tensor], leaves: list[Tensor], gradient: Tensor, backend: object):
        wrong = torch.zeros_like(gradient) if gradient.dtype == torch.bfloat16 else gradient
        return passes(way, leaves, wrong, attention.SDPBackend.MATH)

    monkeypatch.setattr(attention, "passes", spoilt)
    row = attention.measured(Case("tiny", Shape(1, 2, 16, 8, 16), "math", "plain", ("dense",)), CPU)
    assert row["right"] is False
    assert float(row["dv"]) == 1.0
    assert float(row["output"]) < attention.ALLOWED


def test_a_slice_is_what_it_is_a_slice_of() -> None:
    gradient = attention.drawn(TINY, CPU)[-1]
    found = attention.laid_out(gradient, "slice")
    assert torch.equal(found, gradient)
    assert found.stride(1) == attention.WIDER * gradient.stride(1)


def test_no_order_of_gradients_meets_a_plan_of_another() -> None:
    cases = [case for case in attention.all_cases(["cudnn"]) if case.name not in attention.SHAPES]
    assert len(cases) == 2 * len(attention.ORDERS) == len({case.shape for case in cases})


def test_the_kernels_that_may_end_their_process_come_last() -> None:
    risky = [
        case.attention == "plain" and case.gradients != ("dense",)
        for case in attention.all_cases(list(attention.BACKENDS))
        if case.backend == "cudnn"
    ]
    assert risky == sorted(risky)
    assert any(risky)

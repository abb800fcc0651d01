from __future__ import annotations

import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from eridiff import devices
from eridiff.devices import has_triton, tf32_products, to_device, worth_compiling

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_compiles_on_a_gpu_where_it_can_and_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_triton_compiles", lambda: True)
    assert worth_compiling("auto", CUDA, num_items=100, break_even=100)
    assert not worth_compiling("auto", CUDA, num_items=99, break_even=100)
    assert not worth_compiling("auto", CPU, num_items=10**6, break_even=100)
    assert worth_compiling(True, CPU, num_items=1, break_even=100)
    assert not worth_compiling(False, CUDA, num_items=10**6, break_even=100)
    monkeypatch.setattr(devices, "_triton_compiles", lambda: False)
    assert not worth_compiling("auto", CUDA, num_items=10**6, break_even=100)


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_tensorfloat32_is_for_gpus_and_ends_with_the_block(device: torch.device) -> None:
    before = torch.get_float32_matmul_precision()
    with tf32_products(device):
        assert torch.get_float32_matmul_precision() == ("high" if device == CUDA else before)
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_tensor_arrives_whole(name: str) -> None:
    sent = torch.arange(100_000).reshape(10, -1)
    assert torch.equal(to_device(sent, torch.device(name)).cpu(), sent)


class Driver:
    """Triton's, on a machine with or without a C compiler."""

    def __init__(self, failure: str | None) -> None:
        self.failure = failure

    @property
    def active(self) -> object:
        if self.failure:
            raise RuntimeError(self.failure)
        return self


@pytest.mark.parametrize("failure", [None, "Failed to find C compiler"])
def test_triton_is_used_where_it_can_compile_and_else_the_log_says_why_not(
    failure: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    triton, runtime = ModuleType("triton"), ModuleType("triton.runtime")
    triton.__spec__ = ModuleSpec("triton", None)
    runtime.driver = Driver(failure)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setitem(sys.modules, "triton.runtime", runtime)
    monkeypatch.setattr(devices, "_triton_compiles", devices._triton_compiles.__wrapped__)
    with caplog.at_level(logging.WARNING):
        assert has_triton(CUDA) == (failure is None)
    assert ("Failed to find C compiler" in caplog.text) == (failure is not None)
    assert not has_triton(CPU)

from __future__ import annotations

import pytest
import torch

from eridiff.devices import tf32_products, to_device, worth_compiling

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_compiles_on_a_gpu_where_it_pays() -> None:
    assert worth_compiling("auto", CUDA, num_items=100, break_even=100)
    assert not worth_compiling("auto", CUDA, num_items=99, break_even=100)
    assert not worth_compiling("auto", CPU, num_items=10**6, break_even=100)
    assert worth_compiling(True, CPU, num_items=1, break_even=100)
    assert not worth_compiling(False, CUDA, num_items=10**6, break_even=100)


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

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from eridiff.encoding.batching import Batcher
from eridiff.errors import ModelError


class Device:
    """Squares numbers, at most `capacity` at once."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.sizes = capacity, []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.sizes.append(len(numbers))
        if len(numbers) > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return [number**2 for number in numbers]


def test_nothing_is_left_out_and_order_is_kept() -> None:
    device = Device(100)
    assert Batcher(4).encode(range(10), device) == [number**2 for number in range(10)]
    assert device.sizes == [4, 4, 2]


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    device, batcher = Device(3), Batcher(8)
    assert batcher.encode(range(10), device) == [number**2 for number in range(10)]
    assert batcher.encode(range(3), device) == [0, 1, 4]
    assert device.sizes == [8, 4, 2, 2, 2, 2, 2, 2, 1]


@pytest.mark.gpu
def test_memory_of_a_failed_batch_is_given_back() -> None:
    free, _ = torch.cuda.mem_get_info()

    def encode(items: Sequence[int]) -> list[int]:
        kept = [torch.empty(int(0.3 * free), dtype=torch.uint8, device="cuda") for _ in items]
        return [len(tensor) for tensor in kept]

    batcher = Batcher(8)
    assert len(batcher.encode(range(8), encode)) == 8
    assert batcher.batch_size == 2


def test_one_item_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ModelError, match="too little memory") as caught:
        Batcher(4).encode(range(4), Device(0))
    assert caught.value.exit_code == 5

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from eridiff.encoding.batching import Batcher, finite_rows
from eridiff.errors import ModelError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Device:
    """Squares numbers, at most `capacity` at once; notes when batches are started and fetched."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.sizes, self.log = capacity, [], []

    def __call__(self, numbers: Sequence[int]) -> Callable[[], list[int]]:
        self.sizes.append(len(numbers))
        if len(numbers) > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.log.append(("start", numbers[0]))

        def finish() -> list[int]:
            self.log.append(("finish", numbers[0]))
            return [number**2 for number in numbers]

        return finish


@pytest.mark.parametrize("place", [CPU, GPU], ids=str)
def test_outputs_come_in_order_batch_by_batch(place: torch.device) -> None:
    device = Device(100)
    batches = [range(4), range(4, 6), range(6, 6), range(6, 7)]
    assert [*Batcher(4, place).encode(batches, device)] == [[0, 1, 4, 9], [16, 25], [], [36]]
    assert [*Batcher(4, place).encode([], device)] == []


def test_on_a_gpu_a_batch_is_started_before_the_one_before_is_fetched() -> None:
    device = Device(100)
    outputs = Batcher(4, GPU).encode([range(4), range(4, 8), range(8, 9)], device)
    next(outputs)
    assert device.log == [("start", 0), ("start", 4), ("finish", 0)]
    assert [*outputs] == [[16, 25, 36, 49], [64]]
    assert device.log[3:] == [("start", 8), ("finish", 4), ("finish", 8)]


def test_elsewhere_nothing_is_started_that_was_not_asked_for() -> None:
    device = Device(100)
    next(Batcher(4, CPU).encode([range(4), range(4, 8)], device))
    assert device.log == [("start", 0), ("finish", 0)]


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    device, batcher = Device(3), Batcher(8, CPU)
    found = [*batcher.encode([range(8), range(8, 11)], device)]
    assert found == [[number**2 for number in range(8)], [64, 81, 100]]
    assert device.sizes == [8, 4, 2, 2, 2, 2, 2, 1]


@pytest.mark.gpu
def test_memory_of_a_failed_batch_is_given_back() -> None:
    free, _ = torch.cuda.mem_get_info()

    def start(items: Sequence[int]) -> Callable[[], list[int]]:
        kept = [torch.empty(int(0.3 * free), dtype=torch.uint8, device="cuda") for _ in items]
        sizes = [len(tensor) for tensor in kept]
        return lambda: sizes

    batcher = Batcher(8, GPU)
    assert sum(map(len, batcher.encode([range(8)], start))) == 8
    assert batcher.batch_size == 2


def test_one_item_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ModelError, match="too little memory") as caught:
        [*Batcher(4, CPU).encode([range(4)], Device(0))]
    assert caught.value.exit_code == 5


def test_one_item_in_a_batch_that_is_filled_up_halves_it_too() -> None:
    batcher = Batcher(4, CPU)

    def start(items: Sequence[int]) -> Callable[[], list[int]]:
        if batcher.batch_size > 1:  # what it is filled up to
            raise torch.OutOfMemoryError("full")
        return lambda: [*items]

    assert [*batcher.encode([[7]], start)] == [[7]]
    assert batcher.batch_size == 1


def test_rows_are_finite_in_every_batch() -> None:
    first, second = torch.zeros(3, 2, 2), torch.zeros(3, 4)
    first[0, 1, 1], second[2, 3] = float("nan"), float("inf")
    assert finite_rows(first, second).tolist() == [False, True, False]

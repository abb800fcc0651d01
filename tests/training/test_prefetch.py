from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count, islice

import pytest

from eridiff.training.prefetch import prefetched


def test_items_come_in_order_and_end() -> None:
    with prefetched(range(20), depth=3) as items:
        assert list(items) == list(range(20))


def test_an_error_comes_at_its_items_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the second item")

    with prefetched(items(), depth=4) as got:
        assert next(got) == 1
        with pytest.raises(ValueError, match="the second item"):
            next(got)


def test_no_more_is_made_ahead_than_asked_and_the_thread_ends_with_the_block() -> None:
    made = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for number in count():
            made.append(number)
            if number == 4:
                third.set()
            yield number

    with prefetched(items(), depth=2) as got:
        assert list(islice(got, 2)) == [0, 1]
        assert third.wait(timeout=10)
        assert len(made) == 5  # two taken, two waiting, one in hand
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())

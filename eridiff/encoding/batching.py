"""Batches as large as the device's memory allows; on a GPU the next is started before the last is fetched."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from eridiff.devices import free_memory
from eridiff.errors import DoesNotFit

logger = logging.getLogger(__name__)

Input = TypeVar("Input")
Output = TypeVar("Output")


class Batcher:
    """Encodes in batches and halves them when memory runs out; the smaller size is kept from then on.

    Args:
        batch_size: items a batch at first.
        device: where the work is done.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.batch_size = batch_size
        self._num_ahead = 1 if device.type == "cuda" else 0

    def encode(
        self,
        batches: Iterable[Sequence[Input]],
        start: Callable[[Sequence[Input]], Callable[[], Sequence[Output]]],
    ) -> Iterator[list[Output]]:
        """The outputs of each batch, in order.

        While a GPU works on one batch, the next one is taken from `batches` and started, and only then are
        the outputs of the first one waited for. Elsewhere nothing is started that was not asked for.

        Args:
            batches: items that can be encoded together.
            start: starts the encoding of some items, and returns what waits for their outputs.

        Raises:
            DoesNotFit: not even one item fits into memory.
        """
        started: deque[list[Callable[[], Sequence[Output]]]] = deque()
        for batch in batches:
            started.append(self._start(batch, start))
            if len(started) > self._num_ahead:
                yield _fetched(started.popleft())
        while started:
            yield _fetched(started.popleft())

    def _start(
        self, items: Sequence[Input], start: Callable[[Sequence[Input]], Callable[[], Sequence[Output]]]
    ) -> list[Callable[[], Sequence[Output]]]:
        started: list[Callable[[], Sequence[Output]]] = []
        at = 0
        while at < len(items):
            batch = items[at : at + self.batch_size]
            try:
                started.append(start(batch))
                at += len(batch)
                continue
            except torch.OutOfMemoryError as error:
                reason = str(error)
            # Only here: while the error is being handled, its traceback keeps the batch's memory.
            self._halve(reason)
        return started

    def _halve(self, reason: str) -> None:
        # Whatever the batch's own size was: it may have been filled up to the whole one.
        free_memory()
        if self.batch_size == 1:
            raise DoesNotFit(
                "The device has too little memory to encode a single item.",
                found=reason.partition("\n")[0],
                fix="free its memory, use a smaller resolution, or lower precompute.tile_above_px",
            )
        self.batch_size //= 2
        logger.warning("Out of memory: batches of %d from now on.", self.batch_size)


def _fetched(started: Sequence[Callable[[], Sequence[Output]]]) -> list[Output]:
    return [output for finish in started for output in finish()]


def finite_rows(*batches: Tensor) -> Tensor:
    """Which rows are finite in every batch, `[B]` bool on the batches' device."""
    return torch.stack([batch.isfinite().flatten(1).all(dim=1) for batch in batches]).all(dim=0)

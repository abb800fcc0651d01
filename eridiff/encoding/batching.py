"""Batches as large as the device's memory allows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from eridiff.devices import free_memory
from eridiff.errors import ModelError

logger = logging.getLogger(__name__)

Input = TypeVar("Input")
Output = TypeVar("Output")


class Batcher:
    """Encodes in batches and halves them when memory runs out; the smaller size is kept from then on.

    Args:
        batch_size: items a batch at first.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def encode(
        self, items: Sequence[Input], encode: Callable[[Sequence[Input]], Sequence[Output]]
    ) -> list[Output]:
        """The outputs of `encode` for all items, in order.

        Raises:
            ModelError: not even one item fits into memory.
        """
        outputs: list[Output] = []
        while len(outputs) < len(items):
            batch = items[len(outputs) : len(outputs) + self.batch_size]
            try:
                outputs += encode(batch)
                continue
            except torch.OutOfMemoryError as error:
                reason = str(error)
            # Only here: while the error is being handled, its traceback keeps the batch's memory.
            self._halve(len(batch), reason)
        return outputs

    def _halve(self, failed_size: int, reason: str) -> None:
        free_memory()
        if failed_size == 1:
            raise ModelError(
                "The device has too little memory to encode a single item.",
                found=reason.partition("\n")[0],
                fix="free its memory, use a smaller resolution, or lower precompute.tile_above_px",
            )
        self.batch_size = failed_size // 2
        logger.warning("Out of memory: batches of %d from now on.", self.batch_size)

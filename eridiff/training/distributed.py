"""One process a device, started by torchrun: who we are, and the one sum a step that ties the devices.

Every device holds the whole LoRA and takes a share of each batch. Its loss is divided by the samples of the
whole step, so that the plain sum of the gradients over devices is the gradient of the step: exact for shares
of unequal size, empty ones included, with no wrapper around the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; rank 0 alone writes."""

    rank: int
    size: int
    device: torch.device
    local_rank: int = 0
    """Its number among those of this machine."""
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints, metrics and messages."""
        return self.rank == 0

    @property
    def neighbours(self) -> range:
        """Ranks of the processes of this machine."""
        first = self.rank - self.local_rank
        return range(first, first + self.local_size)

    def sum_(self, values: Tensor) -> None:
        """Replaces `values` by their sum over all devices."""
        if self.size > 1:
            dist.all_reduce(values)

    def agree(self, number: int) -> int:
        """Rank 0's number, on every device."""
        if self.size == 1:
            return number
        shared = torch.tensor([number], dtype=torch.int64, device=self.device)
        dist.broadcast(shared, src=0)
        return int(shared.item())

    def share_(self, values: Tensor) -> None:
        """Replaces `values` by rank 0's."""
        if self.size > 1:
            dist.broadcast(values, src=0)

    def gather(self, items: tuple[Item, ...]) -> tuple[Item, ...]:
        """The items that any device gave, in order of rank."""
        if self.size == 1:
            return items
        lists: list[tuple[Item, ...] | None] = [None] * self.size
        dist.all_gather_object(lists, items)
        return tuple(item for items_of_rank in lists for item in items_of_rank or ())

    def wait(self) -> None:
        """Returns once every device is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that torchrun started, or stands alone without it.

    Args:
        device: the recipe's device; with several processes on CUDA each takes the one of its local rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes(0, 1, device)
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield Processes(
            dist.get_rank(), size, device, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", size))
        )
    finally:
        dist.destroy_process_group()

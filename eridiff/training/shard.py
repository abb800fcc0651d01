"""Blocks whose frozen weights are spread over the GPUs of a machine, and come together while they compute.

FSDP gathers weights by collectives, for which all processes must make the same passes. Here a process's
share of a batch may be empty, and the first process alone proves the LoRA file. Frozen weights never change,
so each process reads the others' memory by itself, whenever it needs a block; weights in few bits are bytes
like any others.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing import get_sharing_strategy, set_sharing_strategy
from torch.multiprocessing.reductions import reduce_tensor

from eridiff.families.frozen.keep import blocks_of
from eridiff.training.distributed import Processes
from eridiff.training.stretch import Stretch
from eridiff.training.visiting import let_visit

logger = logging.getLogger(__name__)

_ALIGNED = 64
_DEVICE = 6
"""Which argument of torch's `rebuild_cuda_tensor` is the device that memory is opened on."""


@dataclass(frozen=True)
class Share:
    """This process's part of the blocks.

    Attributes:
        modules: the blocks.
        stretches: their frozen tensors, one stretch a block.
        starts: where this process's part of each begins in `memory`, and where the last one ends.
        memory: `[bytes]` uint8 on the device.
    """

    modules: Sequence[nn.Module]
    stretches: Sequence[Stretch]
    starts: Sequence[int]
    memory: Tensor

    def open(self, processes: Processes) -> None:
        """Lets the blocks compute on weights read from all processes of this machine, which must all call it.

        Their gradients and outputs are those of blocks that are whole.
        """
        memories = _exchanged(self.memory, processes)
        homes = [
            _Spread(stretch, [memory[start:end] for memory in memories])
            for stretch, start, end in zip(self.stretches, self.starts, self.starts[1:], strict=False)
        ]
        let_visit(self.modules, homes, self.memory.device)


def keep_share(denoiser: nn.Module, blocks: str, processes: Processes) -> Share:
    """Keeps this process's part of each block's frozen weights on its device, and lets go all other parts.

    Trained parameters stay. The blocks cannot compute before `Share.open`.

    Args:
        denoiser: with the LoRA that it is trained with; its blocks in system memory.
        blocks: regular expression of the names of its repeated blocks.
        processes: those of this machine share its blocks.
    """
    names = blocks_of((name for name, _ in denoiser.named_modules()), blocks)
    modules = [denoiser.get_submodule(name) for name in names]
    stretches = [Stretch(module) for module in modules]
    count, number = processes.local_size, processes.local_rank
    starts = [0]
    for stretch in stretches:
        starts.append(starts[-1] + -(-stretch.nbytes // (count * _ALIGNED)) * _ALIGNED)
    memory = torch.empty(starts[-1], dtype=torch.uint8, device=processes.device)
    for stretch, start, end in zip(stretches, starts, starts[1:], strict=False):
        length = end - start
        whole = torch.zeros(count * length, dtype=torch.uint8)
        stretch.write(whole[: stretch.nbytes])
        memory[start:end].copy_(whole[number * length : (number + 1) * length])
        stretch.forget(processes.device)
    return Share(modules, stretches, starts, memory)


@dataclass(frozen=True)
class _Spread:
    """A block's tensors in parts of equal length, one a process, of which the last may be filled up."""

    stretch: Stretch
    parts: Sequence[Tensor]

    def copy_into(self, memory: Tensor) -> None:
        """Fills `[stretch.nbytes]` uint8 on the device, in the order of the current stream."""
        for part, place in zip(self.parts, memory.split(self.parts[0].numel()), strict=False):
            place.copy_(part[: place.numel()], non_blocking=True)


def _exchanged(memory: Tensor, processes: Processes) -> list[Tensor]:
    """The memory of each process of this machine, in order of rank; one's own is `memory`."""
    if processes.local_size == 1:
        return [memory]
    with _named_files():
        if memory.device.type == "cuda":
            torch.cuda.synchronize(memory.device)  # others may read it from here on
            handle = ForkingPickler.dumps(reduce_tensor(memory))
        else:
            handle = ForkingPickler.dumps(memory.share_memory_())
    handles = processes.gather((bytes(handle),))
    return [
        memory if rank == processes.rank else _opened(handles[rank], memory.device)
        for rank in processes.neighbours
    ]


def _opened(handle: bytes, device: torch.device) -> Tensor:
    """Another process's memory, as a tensor here; the processes are of one job, and trust each other."""
    found = pickle.loads(handle)
    if isinstance(found, Tensor):
        return found
    rebuild, arguments = found
    owner = arguments[_DEVICE]
    # Opened on its owner's device, memory would cost a context there; GPUs that reach each other need none.
    direct = torch.cuda.can_device_access_peer(device, owner)
    if not direct:
        logger.info("GPUs %s and %d do not reach each other: blocks come through the host.", device, owner)
    where = device.index if direct else owner
    return rebuild(*arguments[:_DEVICE], where, *arguments[_DEVICE + 1 :])


@contextmanager
def _named_files() -> Iterator[None]:
    """A context in which a CPU's shared memory is a named file, which any process can open."""
    own: Any = get_sharing_strategy()
    set_sharing_strategy("file_system")
    try:
        yield
    finally:
        set_sharing_strategy(own)

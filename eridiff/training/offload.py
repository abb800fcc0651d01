"""Blocks whose frozen weights stay in system memory while they do not compute."""

from __future__ import annotations

import mmap
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from eridiff.errors import ModelError
from eridiff.families.frozen.keep import away, blocks_of
from eridiff.training.stretch import Stretch
from eridiff.training.visiting import let_visit


def offload_blocks(denoiser: nn.Module, blocks: str, share: float, device: torch.device) -> int:
    """Lets the frozen weights of some blocks lie in system memory, in place; see `visiting`.

    Args:
        denoiser: with the LoRA that it is trained with.
        blocks: regular expression of the names of its repeated blocks.
        share: of the blocks to keep away, 0 to 1; which ones, `keep.away` says.
        device: where it computes.

    Returns:
        The number of blocks.

    Raises:
        ModelError: the system does not give the memory.
    """
    names = blocks_of((name for name, _ in denoiser.named_modules()), blocks)
    chosen = away(names, share)
    modules = [denoiser.get_submodule(name) for name in names if name in chosen]
    let_visit(modules, [_InSystemMemory(Stretch(module), device) for module in modules], device)
    return len(modules)


class _InSystemMemory:
    """A block's tensors in system memory, page-locked where the device is a GPU."""

    def __init__(self, stretch: Stretch, device: torch.device) -> None:
        """Moves them there."""
        self.stretch = stretch
        self._memory = _page_locked(stretch.nbytes, device)
        stretch.move(self._memory)

    def copy_into(self, memory: Tensor) -> None:
        """Fills `[stretch.nbytes]` uint8 on the device, in the order of the current stream."""
        memory.copy_(self._memory, non_blocking=True)


def _page_locked(nbytes: int, device: torch.device) -> Tensor:
    """`[nbytes]` uint8 in system memory, which a GPU reads by itself.

    torch's own pinned memory comes in powers of two: up to twice what is asked for. Pages are mapped and
    locked here, so that a base takes its own size.

    Raises:
        ModelError: the system does not give it.
    """
    pages = mmap.mmap(-1, max(nbytes, 1))
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    if device.type == "cuda":
        runtime: Any = torch.cuda.cudart()
        address = memory.data_ptr()
        code = int(runtime.cudaHostRegister(address, len(pages), 0))
        if code:
            raise ModelError(
                "the system's memory cannot be locked for blocks that stay in it",
                where="train.offload",
                found=f"{len(pages) / 1e9:.2f} GB refused, CUDA error {code}",
                fix="lower train.offload, or set model.quantize: int8 or nf4",
            )
        weakref.finalize(memory.untyped_storage(), _unlock, pages, address).atexit = False
    return memory


def _unlock(pages: mmap.mmap, address: int) -> None:
    """Unlocks pages; that they are among the arguments keeps them mapped until then."""
    runtime: Any = torch.cuda.cudart()
    runtime.cudaHostUnregister(address)

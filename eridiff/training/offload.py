"""Blocks whose frozen weights stay in system memory, and come to the device while they compute.

Diffusers' group offloading cannot train: autograd keeps the weights that a forward pass used, which either
stay on the device or are swapped away under it. Here a block keeps nothing of its forward pass but its
inputs. Its backward pass computes the block again on a fresh copy of the weights, and that copy lives for as
long as autograd holds it. So gradients are those of a plain run, to the bit.

The next block's weights travel on a stream of their own while a block computes; which one is next is learnt
from the last pass, in either direction. At most two blocks' weights are on the device at once.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eridiff.errors import ModelError
from eridiff.families.frozen.keep import away, blocks_of

_ALIGNED = 64
"""Bytes that tensors in a block's memory are aligned to."""


def offload_blocks(denoiser: nn.Module, blocks: str, share: float, device: torch.device) -> int:
    """Lets the frozen weights of some blocks lie in system memory, in place; trained parameters stay.

    Where gradients are taken, these blocks recompute their activations by themselves: no other gradient
    checkpointing may be laid around them (`recompute` knows).

    Args:
        denoiser: with the LoRA that it is trained with.
        blocks: regular expression of the names of its repeated blocks.
        share: of the blocks to keep away, 0 to 1; which ones, `keep.away` says.
        device: where it computes. On a CPU weights are copied all the same.

    Returns:
        The number of blocks.

    Raises:
        ModelError: the system does not give the memory.
    """
    names = blocks_of((name for name, _ in denoiser.named_modules()), blocks)
    chosen = away(names, share)
    modules = [denoiser.get_submodule(name) for name in names if name in chosen]
    carrier = _Carrier([_Home(module, device) for module in modules], device)
    for number, module in enumerate(modules):
        module.forward = _Visiting(module.forward, carrier, number)
    return len(modules)


def recomputes_itself(module: object) -> bool:
    """Whether a module takes care of its own gradient checkpointing."""
    return isinstance(getattr(module, "forward", None), _Visiting)


def set_forward(block: nn.Module, forward: Callable[..., Any]) -> None:
    """Sets what a block computes, which leaves its weights where they are kept."""
    if isinstance(block.forward, _Visiting):
        block.forward.computes(forward)
    else:
        block.forward = forward


class _Visiting:
    """A block's forward pass with its weights brought for that time."""

    def __init__(self, forward: Callable[..., Any], carrier: _Carrier, number: int) -> None:
        self._forward, self._carrier, self._number = forward, carrier, number

    def computes(self, forward: Callable[..., Any]) -> None:
        """Sets what it computes once the weights are there."""
        self._forward = forward

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            # Denoisers draw nothing: there is no state of a generator to keep.
            return checkpoint(self._visit, *inputs, use_reentrant=False, preserve_rng_state=False, **named)
        return self._visit(*inputs, **named)

    def _visit(self, *inputs: Any, **named: Any) -> Any:
        home = self._carrier.bring(self._number)
        # Not by hooks: a recomputation is broken off by an exception once it has all that it was for.
        try:
            return self._forward(*inputs, **named)
        finally:
            home.leave()


class _Carrier:
    """Brings blocks' weights to the device, the next one ahead of time.

    Memory for a copy is taken on the computing stream, and the copying stream waits for the work that was
    queued there before: until then the memory may be in use. So a copy runs beside the work queued after
    it, and memory is given back in the order of the computing stream, as any tensor's is.
    """

    def __init__(self, homes: Sequence[_Home], device: torch.device) -> None:
        self._homes, self._device = tuple(homes), device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._foresight = _Foresight()
        self._coming: _Parcel | None = None

    def bring(self, number: int) -> _Home:
        """Puts a block's weights in their place and sends for those that will be wanted next."""
        coming, self._coming = self._coming, None
        copy = self._received(coming) if coming is not None else None
        if coming is None or coming.number != number:
            copy = self._received(self._sent(number))
        assert copy is not None
        following = self._foresight.after(number)
        if following == number:
            self._coming = _Parcel(number, copy, None)  # it stays
        elif following is not None:
            self._coming = self._sent(following)
        home = self._homes[number]
        home.enter(copy)
        return home

    def _sent(self, number: int) -> _Parcel:
        source = self._homes[number].memory
        copy = torch.empty_like(source, device=self._device)
        if self._stream is None:
            return _Parcel(number, copy.copy_(source), None)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copy.copy_(source, non_blocking=True)
        return _Parcel(number, copy, self._stream.record_event())

    def _received(self, parcel: _Parcel) -> Tensor:
        # Also where nobody wants it any more: its memory must not be taken for other things before it came.
        if parcel.arrival is not None:
            torch.cuda.current_stream(self._device).wait_event(parcel.arrival)
        return parcel.copy


@dataclass(frozen=True)
class _Parcel:
    """A block's weights on their way; `arrival` is a CUDA event, or none where they are there."""

    number: int
    copy: Tensor
    arrival: Any


class _Foresight:
    """Which number comes next, as it was the last time that the same two came one after the other.

    Two numbers tell the direction, so that forward passes, backward passes and the turns between are all
    foreseen from the second step on.
    """

    def __init__(self) -> None:
        self._followed: dict[tuple[int | None, int | None], int] = {}
        self._recent: tuple[int | None, int | None] = (None, None)

    def after(self, number: int) -> int | None:
        """Notes that `number` came; what will probably come next, or none where that is not known."""
        self._followed[self._recent] = number
        self._recent = (self._recent[1], number)
        return self._followed.get(self._recent)


@dataclass(frozen=True)
class _Place:
    """A name in a module that stands for a frozen tensor, and where its bytes lie in a block's memory."""

    names: dict[str, Any]
    name: str
    tensor: Tensor
    start: int

    def view(self, memory: Tensor) -> Tensor:
        """The tensor in such a memory."""
        flat = memory[self.start : self.start + self.tensor.nbytes]
        return flat.view(self.tensor.dtype).view(self.tensor.shape)


class _Home:
    """Where the frozen tensors of a block lie when it does not compute: one stretch of system memory."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        """Moves them there, page-locked where the device is a GPU."""
        self._places, total = [], 0
        for module in block.modules():
            for names in (module._parameters, module._buffers):
                for name, tensor in names.items():
                    if tensor is not None and not tensor.requires_grad and _has_memory(tensor):
                        self._places.append(_Place(names, name, tensor, total))
                        total += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        self.memory = _page_locked(total, device)
        for place in self._places:
            view = place.view(self.memory)
            view.copy_(place.tensor.data)
            place.tensor.data = view

    def enter(self, copy: Tensor) -> None:
        """Lets the block compute with a copy of the memory.

        Other tensors take the places of its own: recomputation keeps a frozen tensor as an object, and would
        look at whatever that object holds by then.
        """
        for place in self._places:
            view = place.view(copy)
            is_parameter = isinstance(place.tensor, nn.Parameter)
            place.names[place.name] = nn.Parameter(view, requires_grad=False) if is_parameter else view

    def leave(self) -> None:
        """Puts its own tensors back."""
        for place in self._places:
            place.names[place.name] = place.tensor


def _has_memory(tensor: Tensor) -> bool:
    """Whether a tensor is more than one number stretched to a shape, which may stay where it is."""
    return tensor.untyped_storage().nbytes() >= tensor.nbytes


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

"""Blocks whose frozen weights lie elsewhere, and come to the device while they compute.

Diffusers' group offloading cannot train: autograd keeps the weights that a forward pass used, which either
stay on the device or are swapped away under it. Here a block keeps nothing of its forward pass but its
inputs. Its backward pass computes the block again on a fresh copy of the weights, and that copy lives for as
long as autograd holds it. So gradients are those of a plain run, to the bit.

The next block's weights travel on a stream of their own while a block computes; which one is next is learnt
from the last pass, in either direction. At most two blocks' weights are on the device at once. All this is
work queued on the device: a CUDA graph of a pass brings them just so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eridiff.training.stretch import Stretch


class Home(Protocol):
    """Where the frozen tensors of a block lie when it does not compute."""

    @property
    def stretch(self) -> Stretch:
        """The tensors, one after the other."""
        ...

    def copy_into(self, memory: Tensor) -> None:
        """Fills `[stretch.nbytes]` uint8 on the device; on a GPU, in the order of the current stream."""
        ...


def let_visit(modules: Sequence[nn.Module], homes: Sequence[Home], device: torch.device) -> None:
    """Lets blocks compute on copies of their weights, in place; trained parameters stay.

    Where gradients are taken, these blocks recompute their activations by themselves: no other gradient
    checkpointing may be laid around them (`recompute` knows).

    Args:
        modules: the blocks, in the order in which they compute.
        homes: one a block.
        device: where they compute. On a CPU weights are copied all the same.
    """
    carrier = Carrier(homes, device)
    for number, module in enumerate(modules):
        module.forward = _Visiting(module.forward, carrier, number)


def carrier_of(denoiser: nn.Module) -> Carrier | None:
    """What brings the weights of a denoiser's blocks; none where no block's weights come and go."""
    forwards = (getattr(module, "forward", None) for module in denoiser.modules())
    return next((forward.carrier for forward in forwards if isinstance(forward, _Visiting)), None)


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

    def __init__(self, forward: Callable[..., Any], carrier: Carrier, number: int) -> None:
        self._forward, self.carrier, self._number = forward, carrier, number

    def computes(self, forward: Callable[..., Any]) -> None:
        """Sets what it computes once the weights are there."""
        self._forward = forward

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            # Denoisers draw nothing: there is no state of a generator to keep.
            return checkpoint(self._visit, *inputs, use_reentrant=False, preserve_rng_state=False, **named)
        return self._visit(*inputs, **named)

    def _visit(self, *inputs: Any, **named: Any) -> Any:
        stretch = self.carrier.bring(self._number)
        # Not by hooks: a recomputation is broken off by an exception once it has all that it was for.
        try:
            return self._forward(*inputs, **named)
        finally:
            stretch.leave()


class Carrier:
    """Brings blocks' weights to the device, the next one ahead of time.

    Memory for a copy is taken on the computing stream, and the copying stream waits for the work that was
    queued there before: until then the memory may be in use. So a copy runs beside the work queued after
    it, and memory is given back in the order of the computing stream, as any tensor's is.
    """

    def __init__(self, homes: Sequence[Home], device: torch.device) -> None:
        self._homes, self._device = tuple(homes), device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._foresight = _Foresight()
        self._coming: _Parcel | None = None

    def bring(self, number: int) -> Stretch:
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
        stretch = self._homes[number].stretch
        stretch.enter(copy)
        return stretch

    def rest(self) -> None:
        """Ends a pass: nothing is on its way, and the next pass begins as this one did.

        So a pass can be recorded as a CUDA graph, which must receive whatever it sends for.
        """
        coming, self._coming = self._coming, None
        if coming is not None:
            self._received(coming)
        self._foresight.rest()

    def _sent(self, number: int) -> _Parcel:
        home = self._homes[number]
        copy = torch.empty(home.stretch.nbytes, dtype=torch.uint8, device=self._device)
        if self._stream is None:
            home.copy_into(copy)
            return _Parcel(number, copy, None)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            home.copy_into(copy)
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

    def rest(self) -> None:
        """Begins anew, with all that was learnt."""
        self._recent = (None, None)

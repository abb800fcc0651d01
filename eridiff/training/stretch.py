"""The frozen tensors of a block's base as one stretch of bytes, wherever those lie.

What belongs to its LoRA stays where it is, also what is not trained: where the LoRA started.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eridiff.lora.principal import Start

_ALIGNED = 64
"""Bytes that tensors are aligned to."""


@dataclass(frozen=True)
class _Place:
    """A name in a module that stands for a frozen tensor, and where its bytes lie in the stretch."""

    names: dict[str, Any]
    name: str
    tensor: Tensor
    start: int

    def view(self, memory: Tensor) -> Tensor:
        """The tensor in such a memory."""
        flat = memory[self.start : self.start + self.tensor.nbytes]
        return flat.view(self.tensor.dtype).view(self.tensor.shape)


class Stretch:
    """Where each frozen tensor of a block lies among its bytes.

    Attributes:
        nbytes: of all, gaps included.
    """

    def __init__(self, block: nn.Module) -> None:
        """Counts them; nothing is moved."""
        self._places: list[_Place] = []
        self.nbytes = 0
        for module in block.modules():
            if isinstance(module, Start):
                continue
            for names in (module._parameters, module._buffers):
                for name, tensor in names.items():
                    if tensor is not None and not tensor.requires_grad and _has_memory(tensor):
                        self._places.append(_Place(names, name, tensor, self.nbytes))
                        self.nbytes += -(-tensor.nbytes // _ALIGNED) * _ALIGNED

    def write(self, memory: Tensor) -> None:
        """Copies the tensors into `[nbytes]` uint8, on any device."""
        for place in self._places:
            place.view(memory).copy_(place.tensor.data)

    def move(self, memory: Tensor) -> None:
        """Lets the tensors lie in `[nbytes]` uint8, and their memory go."""
        self.write(memory)
        for place in self._places:
            place.tensor.data = place.view(memory)

    def forget(self, device: torch.device) -> None:
        """Lets go the tensors' memory: what stays of each is a zero on `device`, stretched to its shape."""
        for place in self._places:
            tensor = place.tensor
            tensor.data = torch.zeros(1, dtype=tensor.dtype, device=device).expand(tensor.shape)

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

"""Gradient checkpointing: activations are computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Recomputing(Protocol):
    """What diffusers' models offer."""

    is_gradient_checkpointing: bool

    def enable_gradient_checkpointing(self) -> None:
        """Recompute from now on."""
        ...

    def disable_gradient_checkpointing(self) -> None:
        """Keep activations from now on."""
        ...


def recompute(denoiser: nn.Module) -> None:
    """Turns it on for good."""
    assert isinstance(denoiser, Recomputing), "diffusers' denoisers can"
    denoiser.enable_gradient_checkpointing()


@contextmanager
def recomputing(denoiser: nn.Module) -> Iterator[None]:
    """A context with it on, where the denoiser can."""
    if not isinstance(denoiser, Recomputing) or denoiser.is_gradient_checkpointing:
        yield
        return
    denoiser.enable_gradient_checkpointing()
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()

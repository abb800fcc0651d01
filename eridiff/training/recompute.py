"""Gradient checkpointing: activations are computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.utils.checkpoint import checkpoint

from eridiff.training.visiting import recomputes_itself


@runtime_checkable
class Recomputing(Protocol):
    """What diffusers' models offer."""

    is_gradient_checkpointing: bool

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any]) -> None:
        """Recompute from now on."""
        ...

    def disable_gradient_checkpointing(self) -> None:
        """Keep activations from now on."""
        ...


def _recompute(block: Callable[..., Any], *inputs: Any) -> Any:
    if recomputes_itself(block):
        return block(*inputs)
    # Denoisers draw nothing, and a CUDA graph cannot keep the state of a random number generator.
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)


def recompute(denoiser: nn.Module) -> None:
    """Turns it on for good."""
    assert isinstance(denoiser, Recomputing), "diffusers' denoisers can"
    denoiser.enable_gradient_checkpointing(_recompute)


@contextmanager
def recomputing(denoiser: nn.Module) -> Iterator[None]:
    """A context with it on, where the denoiser can."""
    if not isinstance(denoiser, Recomputing) or denoiser.is_gradient_checkpointing:
        yield
        return
    denoiser.enable_gradient_checkpointing(_recompute)
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()

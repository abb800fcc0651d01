"""Encoders compiled in place, which costs a minute or so at the first batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eridiff.families.encoders import TextEncoder

BREAK_EVEN = 4000
"""Items from which on `precompute.compile: auto` expects to win time: some 15 ms each."""
_T5_LAYER = "T5Block"


def compile_vae(vae: Any, *, backend: str = "inductor") -> None:
    """Compiles the encoder as a whole, with the number and sizes of images left open."""
    vae.encoder.compile(backend=backend, fullgraph=True, dynamic=True)


def compile_text_encoders(encoders: Sequence[TextEncoder], *, backend: str = "inductor") -> int:
    """Compiles each layer of T5, all of which share their code; returns the number of layers.

    CLIP's few short layers take a hundredth of the time.
    """
    models = [encoder.model for encoder in encoders]
    layers = [part for model in models for part in model.modules() if type(part).__name__ == _T5_LAYER]
    for layer in layers:
        layer.compile(backend=backend, fullgraph=True, dynamic=False)
    return len(layers)

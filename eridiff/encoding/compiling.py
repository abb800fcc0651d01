"""Encoders compiled in place, which costs some 20 s at the first batch, of images at that of each size."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from eridiff.devices import worth_compiling
from eridiff.families.group_norm import use_channel_statistics

if TYPE_CHECKING:
    from eridiff.families.encoders import TextEncoder

logger = logging.getLogger(__name__)

BREAK_EVEN_IMAGES = 1500
"""Images of one size from which on `precompute.compile: auto` expects to win: 20 s against 15 ms each."""
BREAK_EVEN_TEXTS = 8000
"""Texts from which on it does: 16 s against 2 ms each."""
_T5_LAYER = "T5Block"


def sizes_to_compile(
    wanted: bool | Literal["auto"],
    images: Iterable[tuple[int, int]],
    *,
    device: torch.device,
    tile_above_px: int,
) -> frozenset[tuple[int, int]]:
    """Heights and widths for which compiling the VAE's encoder is wanted, or worth its time.

    Args:
        wanted: a recipe's `precompute.compile`.
        images: height and width of each image to encode, in pixels.
        device: where the VAE runs.
        tile_above_px: images with a longer side are encoded in tiles, and never compiled for.
    """
    return frozenset(
        size
        for size, count in Counter(images).items()
        if max(size) <= tile_above_px
        and worth_compiling(wanted, device, num_items=count, break_even=BREAK_EVEN_IMAGES)
    )


def compile_vae(vae: Any, sizes: Collection[tuple[int, int]], *, backend: str = "inductor") -> None:
    """Compiles the encoder for images of some sizes; all others, and other precisions, run as before.

    Each size is compiled for itself, and again for another number of images: left open, sizes would take
    three times as long to compile and make slower kernels.

    Args:
        vae: on its device, in its precision.
        sizes: `(height, width)` of images in pixels.
        backend: torch's compiler backend.
    """
    import torch._dynamo

    logger.info("Compiling the VAE for %d sizes of image: some 20 s at the first batch of each.", len(sizes))
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(sizes))
    use_channel_statistics(vae.encoder)
    plain, dtype = vae.encoder.forward, vae.dtype
    compiled = torch.compile(plain, backend=backend, fullgraph=True, dynamic=False)

    def forward(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        return (compiled if images.dtype == dtype and (height, width) in sizes else plain)(images)

    vae.encoder.forward = forward


def compile_text_encoders(encoders: Sequence[TextEncoder], *, backend: str = "inductor") -> int:
    """Compiles each layer of T5, all of which share their code; returns the number of layers.

    CLIP's few short layers take a hundredth of the time.
    """
    models = [encoder.model for encoder in encoders]
    layers = [part for model in models for part in model.modules() if type(part).__name__ == _T5_LAYER]
    if layers:
        logger.info("Compiling T5: some 20 s at the first batch.")
    for layer in layers:
        layer.compile(backend=backend, fullgraph=True, dynamic=False)
    return len(layers)

"""How Flux's transformer takes its inputs: latents as a row of 2x2 patches, time without rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from eridiff.diffusion.timesteps import NUM_STEPS


def pack(latents: Tensor) -> Tensor:
    """`[B, C, h, w]` to `[B, h/2 * w/2, 4 C]`: patches in reading order, channel outermost within a patch."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // 2 * width // 2, channels * 4)


def unpack(packed: Tensor, size: tuple[int, ...]) -> Tensor:
    """The inverse of `pack` for latents of `size` (h, w)."""
    height, width = size
    patches = packed.reshape(packed.shape[0], height // 2, width // 2, -1, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(packed.shape[0], -1, height, width)


def image_ids(latents: Tensor) -> Tensor:
    """Position of each patch of `[B, C, h, w]`, `[h/2 * w/2, 3]` float32: (0, row, column)."""
    rows, columns = (torch.arange(side // 2, device=latents.device) for side in latents.shape[-2:])
    grid = torch.cartesian_prod(rows, columns).float()
    return torch.nn.functional.pad(grid, (1, 0))


@contextmanager
def unrounded(denoiser: Any, *, now: Callable[[], Tensor], guidance: float) -> Iterator[None]:
    """Within it, the transformer embeds time and guidance as they are.

    Diffusers casts both to the activations' dtype before it multiplies by 1000. In bfloat16 that turns
    1000 t = 702 into 704: the model would be told another time than the latents were noised with.

    Args:
        denoiser: Flux's transformer.
        now: gives t `[B]` float32 at each call of the transformer.
        guidance: what a guided model is told; one without guidance is not.
    """

    def replace(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        *rounded, pooled = inputs
        t = now()
        exact = (t, torch.full_like(t, guidance))[: len(rounded)]
        return *(number * NUM_STEPS for number in exact), pooled

    hook = denoiser.time_text_embed.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        hook.remove()

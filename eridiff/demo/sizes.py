"""Widths of the tiny bases: one set for tests, one for the pretrained demo."""

from __future__ import annotations

from dataclasses import dataclass

from eridiff.demo.encoders import ClipSize, T5Size


@dataclass(frozen=True)
class VaeSize:
    """Widths of an `AutoencoderKL` with stride 8."""

    blocks: tuple[int, int, int, int]
    layers: int
    norm_groups: int


@dataclass(frozen=True)
class UnetSize:
    """Widths of SDXL's U-Net: three levels, the first without attention."""

    blocks: tuple[int, int, int]
    head_width: int
    transformer_layers: tuple[int, int, int]
    norm_groups: int
    number_features: int
    """Width of the sinusoid of each of the six geometry numbers."""


@dataclass(frozen=True)
class Sd3Size:
    """Widths of SD3.5's transformer."""

    layers: int
    heads: int
    head_width: int
    dual_layers: tuple[int, ...]
    max_side: int
    """Longest side, in patches, that the position table covers."""


@dataclass(frozen=True)
class FluxSize:
    """Widths of Flux's transformer."""

    double_layers: int
    single_layers: int
    heads: int
    axes: tuple[int, int, int]
    """Features of a head that rotate with index, row and column; they add up to the head's width."""


@dataclass(frozen=True)
class BaseSize:
    """Widths of every part of a base."""

    vae: VaeSize
    clip_l: ClipSize
    clip_g: ClipSize
    t5: T5Size
    unet: UnetSize
    sd3: Sd3Size
    flux: FluxSize


TINY = BaseSize(
    vae=VaeSize(blocks=(8, 8, 16, 16), layers=1, norm_groups=4),
    clip_l=ClipSize(width=16, heads=2, layers=2, feed_forward=32, projection=16),
    clip_g=ClipSize(width=32, heads=4, layers=2, feed_forward=32, projection=32),
    t5=T5Size(width=64, heads=4, head_width=8, layers=2, feed_forward=32),
    unet=UnetSize(
        blocks=(16, 32, 32), head_width=8, transformer_layers=(1, 1, 2), norm_groups=8, number_features=16
    ),
    sd3=Sd3Size(layers=3, heads=2, head_width=16, dual_layers=(0, 1), max_side=64),
    flux=FluxSize(double_layers=2, single_layers=2, heads=2, axes=(4, 6, 6)),
)
"""For tests: some hundred thousand parameters, steps in milliseconds."""

DEMO = BaseSize(
    vae=VaeSize(blocks=(24, 48, 64, 80), layers=1, norm_groups=8),
    clip_l=ClipSize(width=64, heads=4, layers=2, feed_forward=128, projection=64),
    clip_g=ClipSize(width=80, heads=5, layers=2, feed_forward=160, projection=80),
    t5=T5Size(width=160, heads=8, head_width=16, layers=2, feed_forward=128),
    unet=UnetSize(
        blocks=(48, 64, 64), head_width=32, transformer_layers=(1, 1, 1), norm_groups=16, number_features=16
    ),
    sd3=Sd3Size(layers=4, heads=4, head_width=32, dual_layers=(0, 1), max_side=64),
    flux=FluxSize(double_layers=2, single_layers=6, heads=4, axes=(8, 12, 12)),
)
"""For the pretrained demo: at most 5 million parameters a family."""

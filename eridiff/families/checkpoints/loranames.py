"""How LoRA files of a family are named, and by what programs recognise them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from eridiff.families.checkpoints.keys import Structure

Format = Literal["kohya", "diffusers"]
Reader = Literal["comfyui", "diffusers"]


@dataclass(frozen=True)
class LoraNames:
    """A family's LoRA files.

    Attributes:
        default: the format that most programs load.
        structure: counts of the denoiser's blocks, for a file that does not say them, from the widths of its
            modules' inputs; none where they do not tell.
        metadata: fields that programs recognise a file by, for a denoiser of that structure.
        readers: programs that load a file of each format whole.
        comfy_prefixes: what ComfyUI takes in front of diffusers' names of the denoiser's modules; those that
            end with an underscore have underscores for dots.
        uniform_alpha: whether kohya files should have one alpha only.
        kohya_widths: widths of the denoisers whose kohya files diffusers reads; any if none are given.
        text_encoders: kohya's prefix of each text encoder that a file may adapt, by its folder in diffusers.
        convolutions: patterns of the convolutions that `network.conv` adapts.
    """

    default: Format
    structure: Callable[[Mapping[str, int]], Structure | None]
    metadata: Callable[[Structure], dict[str, str]]
    readers: Mapping[Format, tuple[Reader, ...]]
    comfy_prefixes: tuple[str, ...]
    text_encoders: Mapping[str, str]
    convolutions: tuple[str, ...] = ()
    uniform_alpha: bool = False
    kohya_widths: frozenset[int] | None = None

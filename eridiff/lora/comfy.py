"""What ComfyUI would make of a LoRA file: a model of its key rules, written apart from what writes our files.

ComfyUI keeps the original weights, looks names up in a map made from their keys, and adds
`alpha / rank * up @ down` to the rows that the map says, in the order that the map says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eridiff.families.checkpoints.keys import Link, Structure
from eridiff.families.checkpoints.layout import CheckpointLayout
from eridiff.lora.resolving import CLIP_LAYER, flat

_PAIRS = (
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
)


_CLIP_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "clip_l": ("lora_te_", "lora_te1_", "text_encoder.", "text_encoders.clip_l.transformer."),
    "clip_g": ("lora_te2_", "text_encoder_2.", "text_encoders.clip_g.transformer."),
}
"""What stands before the names of CLIP's modules; those that end with an underscore have none but such."""
_MOST_LAYERS = 32
"""Layers of a text encoder that ComfyUI looks for."""


@dataclass(frozen=True)
class Spot:
    """Where a name leads: an original module, which of its stacked diffusers modules, and their row order."""

    component: str
    link: Link
    part: int | None
    swapped: bool


@dataclass(frozen=True)
class Loaded:
    """A factor pair as ComfyUI applies it; `up` has the original weight's row order."""

    spot: Spot
    up: Tensor
    down: Tensor
    scale: float


def load(
    state: Mapping[str, Tensor], layout: CheckpointLayout, structure: Structure
) -> tuple[list[Loaded], list[str]]:
    """What is applied to denoiser and text encoders, and the keys that are not.

    Args:
        state: a LoRA file's tensors.
        layout: the family's names.
        structure: counts of the denoiser's blocks.
    """
    spots = dict(_key_map(layout, structure))
    applied: list[Loaded] = []
    used: set[str] = set()
    for name, spot in spots.items():
        for up_ending, down_ending in _PAIRS:
            up, down = state.get(name + up_ending), state.get(name + down_ending)
            if up is None or down is None:
                continue
            used |= {name + up_ending, name + down_ending}
            scale = 1.0
            if f"{name}.alpha" in state:
                used.add(f"{name}.alpha")
                scale = state[f"{name}.alpha"].item() / down.shape[0]
            applied.append(Loaded(spot, _reordered(up, spot), down, scale))
            break
    return applied, sorted(key for key in state if key not in used)


def rows(loaded: Loaded, part: int) -> Tensor | None:
    """The rows of `up` for one of the stacked diffusers modules, in diffusers' order; none if it has none."""
    spot = loaded.spot
    if spot.part is not None:
        return _restored(loaded.up, spot.link) if spot.part == part else None
    heights = spot.link.heights(loaded.up.shape[0])
    return _restored(loaded.up.split(heights)[part], spot.link)


def _key_map(layout: CheckpointLayout, structure: Structure) -> Iterator[tuple[str, Spot]]:
    names = layout.models[layout.denoiser].names
    assert names is not None
    for link in names.links(structure):
        whole = Spot(layout.denoiser, link, None, swapped=False)
        yield f"lora_unet_{flat(link.original)}", whole
        yield f"diffusion_model.{link.original}", whole
        for part, module in enumerate(link.diffusers):
            number = part if len(link.diffusers) > 1 else None
            spot = Spot(layout.denoiser, link, number, swapped=link.form == "swapped")
            for prefix in layout.lora.comfy_prefixes:
                yield prefix + (flat(module) if prefix.endswith("_") else module), spot
    yield from _clip_keys(layout)


def _clip_keys(layout: CheckpointLayout) -> Iterator[tuple[str, Spot]]:
    for component in layout.lora.text_encoders:
        for number in range(_MOST_LAYERS):
            for inside in CLIP_LAYER:
                module = f"text_model.encoder.layers.{number}.{inside}"
                spot = Spot(component, Link(module, (module,)), None, swapped=False)
                for prefix in _CLIP_PREFIXES[layout.models[component].kind]:
                    yield prefix + (flat(module) if prefix.endswith("_") else module), spot


def _reordered(up: Tensor, spot: Spot) -> Tensor:
    """Under diffusers' names, ComfyUI exchanges scale and shift where the original has them the other way."""
    return _exchanged(up) if spot.swapped else up


def _restored(up: Tensor, link: Link) -> Tensor:
    return _exchanged(up) if link.form == "swapped" else up


def _exchanged(up: Tensor) -> Tensor:
    first, second = up.chunk(2)
    return torch.cat([second, first])

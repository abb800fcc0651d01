"""From a module's name in a LoRA file, in whichever naming, to the module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from eridiff.families.checkpoints.keys import Link, Structure
from eridiff.families.checkpoints.layout import CheckpointLayout

_TEXT_LEVEL = "text_model."
_ORIGINAL_CLIPS = {
    "clip_l": "text_encoders.clip_l.transformer.",
    "clip_g": "text_encoders.clip_g.transformer.",
}


KOHYA_DENOISER = "lora_unet"


def denoiser_links(layout: CheckpointLayout, structure: Structure) -> list[Link]:
    """The links of a denoiser's modules."""
    names = layout.models[layout.denoiser].names
    assert names is not None
    return list(names.links(structure))


def flat(module: str) -> str:
    """A module's name as kohya writes it."""
    return module.replace(".", "_")


@dataclass(frozen=True)
class Place:
    """An adapted module: its component's folder in diffusers, and its link to diffusers' modules there."""

    component: str
    link: Link


class Names:
    """All names under which the modules of a base of a given structure appear in LoRA files."""

    def __init__(self, layout: CheckpointLayout, structure: Structure) -> None:
        self._layout = layout
        self._denoiser = dict(_denoiser_names(layout, structure))

    def find(self, name: str) -> Place | None:
        """The module of that name, or none."""
        return self._denoiser.get(name) or self._text_encoder(name)

    def _text_encoder(self, name: str) -> Place | None:
        for component, prefix in self._layout.lora.text_encoders.items():
            kind = self._layout.models[component].kind
            # A lone `lora_te_` is the first encoder's.
            flats = (f"{prefix}_", "lora_te_") if prefix.endswith("1") else (f"{prefix}_",)
            dotted = (f"{component}.", _ORIGINAL_CLIPS[kind])
            for start in flats:
                if name.startswith(start):
                    module = _unflattened(name.removeprefix(start))
                    return None if module is None else _clip(component, module)
            for start in dotted:
                if name.startswith(start):
                    return _clip(component, name.removeprefix(start))
        return None


def clip_module(module: str) -> str:
    """A module's name in CLIP, its level `text_model` put back where newer transformers leave it out."""
    return _TEXT_LEVEL + module if module.startswith("encoder.") else module


def _clip(component: str, module: str) -> Place:
    module = clip_module(module)
    return Place(component, Link(module, (module,)))


def _unflattened(name: str) -> str | None:
    """CLIP's module of a name with underscores for dots."""
    if name == "text_projection":
        return name
    start = "text_model_encoder_layers_"
    number, _, rest = name.removeprefix(start).partition("_")
    inside = {flat(module): module for module in CLIP_LAYER}
    if not name.startswith(start) or not number.isdigit() or rest not in inside:
        return None
    return f"text_model.encoder.layers.{number}.{inside[rest]}"


CLIP_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
CLIP_LAYER = (*CLIP_ATTENTION, "mlp.fc1", "mlp.fc2")
"""The linear modules of a layer of CLIP, under transformers' names."""


def _denoiser_names(layout: CheckpointLayout, structure: Structure) -> Iterator[tuple[str, Place]]:
    for link in denoiser_links(layout, structure):
        place = Place(layout.denoiser, link)
        yield f"{KOHYA_DENOISER}_{flat(link.original)}", place
        yield f"diffusion_model.{link.original}", place
        yield f"model.diffusion_model.{link.original}", place
        for module in link.diffusers:
            alone = Place(layout.denoiser, Link(module, (module,)))
            for start in (f"{layout.denoiser}.", "base_model.model.", ""):
                yield f"{start}{module}", alone
            for start in (f"{KOHYA_DENOISER}_", "lora_transformer_", "lycoris_"):
                yield f"{start}{flat(module)}", alone

"""What a safetensors file holds, told by its keys: components of which families, under which prefixes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from eridiff.families.checkpoints.layout import CheckpointLayout, Kind, ModelSpec
from eridiff.families.checkpoints.layouts import LAYOUTS
from eridiff.families.checkpoints.tensorfile import Header

_CLIP_HINTS: Mapping[str, Kind] = {
    "clip_l": "clip_l",
    "clip_g": "clip_g",
    "embedders.0": "clip_l",
    "embedders.1": "clip_g",
}
_CLIP_G_WIDTH = 1280
_OTHER_DENOISERS = {
    "input_blocks.0.0.weight": "a UNet of another Stable Diffusion than XL",
    "blocks.0.self_attn.q.weight": "Wan",
    "double_stream_modulation_img.lin.weight": "Flux.2",
    "img_in.proj.weight": "HunyuanVideo",
    "transformer_blocks.0.img_mod.1.weight": "Qwen-Image",
    "cap_embedder.0.weight": "Lumina or Z-Image",
    "distilled_guidance_layer.in_proj.weight": "Chroma",
}


@dataclass(frozen=True)
class Found:
    """A component in a file.

    Attributes:
        kind: what it is; the two CLIPs are told apart by prefix and width.
        prefix: what stands before its keys.
        families: names of the families that have such a component; one for a denoiser.
    """

    kind: Kind
    prefix: str
    families: tuple[str, ...]


def components(header: Header) -> tuple[Found, ...]:
    """The components in a file, in the order of their prefixes."""
    found: dict[tuple[Kind, str], list[str]] = {}
    for layout in LAYOUTS:
        for spec in layout.models.values():
            for prefix in _prefixes(header, spec):
                if spec.kind in ("clip_l", "clip_g") and _which_clip(header, prefix) != spec.kind:
                    continue
                found.setdefault((spec.kind, prefix), []).append(layout.family)
    return tuple(
        Found(kind, prefix, tuple(dict.fromkeys(families)))
        for (kind, prefix), families in sorted(found.items(), key=lambda item: item[0][1])
    )


def prefix_of(header: Header, spec: ModelSpec) -> str | None:
    """The prefix of one component's keys in a file, the two CLIPs told apart where the file holds both."""
    prefixes = _prefixes(header, spec)
    if len(prefixes) > 1 and spec.kind in ("clip_l", "clip_g"):
        prefixes = [prefix for prefix in prefixes if _which_clip(header, prefix) == spec.kind]
    return prefixes[0] if prefixes else None


def other_denoiser(header: Header, layout: CheckpointLayout) -> str | None:
    """What denoiser a file holds that is not of this family, or none if it holds no other."""
    for found in components(header):
        if found.kind == "transformer" and layout.family not in found.families:
            return found.families[0]
    for mark, name in _OTHER_DENOISERS.items():
        if any(key == mark or key.endswith(f".{mark}") for key in header.tensors):
            return name
    return None


def _prefixes(header: Header, spec: ModelSpec) -> list[str]:
    """Prefixes under which a component's marks stand; the first of the marks that is there counts."""
    found: dict[str, None] = {}
    for key in header.tensors:
        for mark in spec.marks:
            if key == mark or (key.endswith(f".{mark}") and _is_prefix(key, mark)):
                found.setdefault(key[: -len(mark)])
                break
    return list(found)


def _is_prefix(key: str, mark: str) -> bool:
    """Whether what stands before a mark is no part of another component's names."""
    start = key[: -len(mark)]
    return not start.startswith(("encoder.", "decoder.", "text_model.")) and not start.endswith(
        (".encoder.", ".decoder.")
    )


def _which_clip(header: Header, prefix: str) -> Kind | None:
    for hint, kind in _CLIP_HINTS.items():
        if hint in prefix:
            return kind
    if f"{prefix}ln_final.weight" in header.tensors:
        return "clip_g"
    return next(_clip_by_width(header, prefix), None)


def _clip_by_width(header: Header, prefix: str) -> Iterator[Kind]:
    for level in ("text_model.", ""):
        info = header.tensors.get(f"{prefix}{level}embeddings.position_embedding.weight")
        if info is not None:
            yield "clip_g" if info.shape[-1] >= _CLIP_G_WIDTH else "clip_l"

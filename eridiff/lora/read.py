"""LoRA files of any of the usual namings, read into diffusers' names with rank and alpha."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from eridiff.errors import ModelError
from eridiff.families.checkpoints.keys import Structure
from eridiff.families.checkpoints.tensorfile import Header, mapped, read_header
from eridiff.lora.adapters import Adapter, Lora
from eridiff.lora.export import STRUCTURE_KEY
from eridiff.lora.fusion import split
from eridiff.lora.resolving import Names

if TYPE_CHECKING:
    from torch import Tensor

    from eridiff.families.base import ModelFamily

_DOWN = (
    ".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", "_lora.down.weight", ".lora.down.weight",
    ".lora_linear_layer.down.weight", ".lora_A",
)  # fmt: skip
_UP = (
    ".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight", "_lora.up.weight", ".lora.up.weight",
    ".lora_linear_layer.up.weight", ".lora_B",
)  # fmt: skip
_OTHER_KINDS = {
    ".dora_scale": "DoRA", ".lora_magnitude_vector": "DoRA", ".lora_mid.weight": "a Tucker decomposition",
    ".hada_w1_a": "LoHa", ".lokr_w1": "LoKr", ".lokr_w1_a": "LoKr", ".lokr_w2": "LoKr", ".oft_blocks": "OFT",
    ".oft_diag": "BOFT", ".diff": "full differences", ".diff_b": "differences of biases",
    ".reshape_weight": "a reshaped weight", ".a1.weight": "GLoRA", ".w_norm": "differences of norms",
    ".b_norm": "differences of norms", ".set_weight": "whole weights",
}  # fmt: skip


@dataclass
class _Parts:
    """Keys of one module's tensors in a file."""

    down: str | None = None
    up: str | None = None
    alpha: str | None = None


@dataclass(frozen=True)
class _Grouped:
    """A file's keys by what stands before their endings."""

    modules: dict[str, _Parts] = field(default_factory=dict)


def read_lora(path: Path, family: ModelFamily, *, structure: Structure | None = None) -> Lora:
    """A LoRA file in diffusers' names.

    Args:
        path: a safetensors file in kohya's, diffusers', peft's or original names.
        family: what it should be of.
        structure: counts of the denoiser's blocks, for a file that neither says nor shows them.

    Raises:
        ModelError: the file is missing, damaged, of another family, or of a kind that is not read.
    """
    header = read_header(path)
    modules = _grouped(header)
    counts = structure or _structure(header, modules, family)
    names = Names(family.checkpoint, counts)
    layers: dict[str, Adapter] = {}
    unknown: list[str] = []
    with mapped(header) as tensors:
        for base, parts in modules.items():
            place = names.find(base)
            if place is None:
                unknown.append(base)
                continue
            adapter = _adapter(path, base, parts, {key: tensors.view(key) for key in _keys(parts)})
            for module, part in split(place.link, adapter).items():
                _add(path, layers, f"{place.component}.{module}", part)
    if unknown:
        raise ModelError(
            f"a LoRA file adapts modules that {family.name} does not have",
            where=path,
            found=f"{len(unknown)} of {len(modules)}: {', '.join(sorted(unknown)[:3])}, ...",
            fix="is it of another family, or of another size?",
        )
    return Lora(layers, counts, header.metadata)


def _grouped(header: Header) -> dict[str, _Parts]:
    modules: dict[str, _Parts] = {}
    for key in header.tensors:
        _refuse_other_kinds(header.path, key)
        for attribute, endings in (("down", _DOWN), ("up", _UP), ("alpha", (".alpha",))):
            ending = next((ending for ending in endings if key.endswith(ending)), None)
            if ending is not None:
                parts = modules.setdefault(key.removesuffix(ending), _Parts())
                if getattr(parts, attribute) is not None:
                    raise ModelError("a LoRA file names a weight twice", where=header.path, found=key)
                setattr(parts, attribute, key)
                break
        else:
            raise ModelError("a file holds more than a LoRA", where=header.path, found=key)
    if not modules:
        raise ModelError("a file holds no LoRA", where=header.path)
    return modules


def _refuse_other_kinds(path: Path, key: str) -> None:
    for ending, kind in _OTHER_KINDS.items():
        if key.endswith(ending):
            raise ModelError(f"this file holds {kind}, which is not read here", where=path, found=key)


def _keys(parts: _Parts) -> list[str]:
    return [key for key in (parts.down, parts.up, parts.alpha) if key is not None]


def _adapter(path: Path, base: str, parts: _Parts, tensors: Mapping[str, Tensor]) -> Adapter:
    import torch

    if parts.down is None or parts.up is None:
        missing = "down" if parts.down is None else "up"
        raise ModelError(f"a LoRA file lacks the {missing} factor of a module", where=path, found=base)
    # Copies: what is mapped goes away with the file.
    down, up = (tensors[key].to(torch.float32, copy=True) for key in (parts.down, parts.up))
    rank = down.shape[0] if down.ndim else 0
    if not (
        down.ndim == up.ndim in (2, 4) and rank and up.shape[1] == rank and all(s == 1 for s in up.shape[2:])
    ):
        raise ModelError(
            "the factors of a LoRA do not fit together",
            where=f"{path}: {base}",
            found=f"down {tuple(down.shape)}, up {tuple(up.shape)}",
        )
    alpha = float(rank)
    if parts.alpha is not None:
        value = tensors[parts.alpha]
        if value.numel() != 1:
            raise ModelError(
                "the alpha of a LoRA is not one number", where=f"{path}: {base}", found=value.shape
            )
        alpha = float(value)
    if not (down.isfinite().all() and up.isfinite().all() and torch.isfinite(torch.tensor(alpha))):
        raise ModelError("a LoRA file holds values that are not finite", where=path, found=base)
    return Adapter(down, up, alpha)


def _add(path: Path, layers: dict[str, Adapter], name: str, adapter: Adapter) -> None:
    if name in layers:
        raise ModelError("a LoRA file adapts a module under two names", where=path, found=name)
    layers[name] = adapter


def _structure(header: Header, modules: Mapping[str, _Parts], family: ModelFamily) -> Structure:
    written = header.metadata.get(STRUCTURE_KEY)
    if written is not None:
        return _parsed(header.path, written)
    widths = {
        base: header.tensors[parts.down].shape[1]
        for base, parts in modules.items()
        if parts.down is not None and len(header.tensors[parts.down].shape) > 1
    }
    found = family.checkpoint.lora.structure(widths)
    if found is None:
        raise ModelError(
            "a LoRA file does not tell which variant of its family it is for",
            where=header.path,
            fix="give the base that it was made for",
        )
    return found


def _parsed(path: Path, text: str) -> Structure:
    try:
        counts = json.loads(text)
    except (ValueError, RecursionError):
        counts = None
    if not isinstance(counts, dict) or not all(type(n) is int and 0 <= n <= 1000 for n in counts.values()):
        raise ModelError(
            "metadata of a LoRA file is damaged", where=path, found=f"{STRUCTURE_KEY}: {text[:200]}"
        )
    return counts

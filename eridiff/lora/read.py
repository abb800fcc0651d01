"""LoRA files of any of the usual namings, read into diffusers' names with rank and alpha."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from eridiff.errors import ModelError
from eridiff.families.checkpoints.keys import Structure
from eridiff.families.checkpoints.tensorfile import Header, mapped, read_header
from eridiff.lora.adapters import Adapter, Lora
from eridiff.lora.fusion import split
from eridiff.lora.keys import ModuleKeys, grouped
from eridiff.lora.resolving import Names
from eridiff.lora.structures import structure_of

if TYPE_CHECKING:
    from torch import Tensor

    from eridiff.families.base import ModelFamily


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
    modules = grouped(header)
    counts = structure or _structure(header, modules, family)
    names = Names(family.checkpoint, counts)
    layers: dict[str, Adapter] = {}
    unknown: list[str] = []
    with mapped(header) as tensors:
        for base, keys in modules.items():
            place = names.find(base)
            if place is None:
                unknown.append(base)
                continue
            adapter = _adapter(path, base, keys, {key: tensors.view(key) for key in keys.present()})
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


def _adapter(path: Path, base: str, keys: ModuleKeys, tensors: Mapping[str, Tensor]) -> Adapter:
    import torch

    if keys.down is None or keys.up is None:
        missing = "down" if keys.down is None else "up"
        raise ModelError(f"a LoRA file lacks the {missing} factor of a module", where=path, found=base)
    # Copies: what is mapped goes away with the file.
    down, up = (tensors[key].to(torch.float32, copy=True) for key in (keys.down, keys.up))
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
    if keys.alpha is not None:
        value = tensors[keys.alpha]
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


def _structure(header: Header, modules: Mapping[str, ModuleKeys], family: ModelFamily) -> Structure:
    found = structure_of(header, modules, family.checkpoint)
    if found is None:
        raise ModelError(
            "a LoRA file does not tell which variant of its family it is for",
            where=header.path,
            fix="is it of another family? if not, give the base that it was made for",
        )
    return found

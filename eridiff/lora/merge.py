"""A base with a LoRA added into its weights: the same files, with the adapted tensors changed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from eridiff.errors import ModelError, RecipeError
from eridiff.families.checkpoints import fitting, quantised
from eridiff.families.checkpoints.base import Base
from eridiff.families.checkpoints.keys import Piece, assembled_shape
from eridiff.families.checkpoints.tensorfile import Header, MappedTensors, mapped, read_header
from eridiff.lora.adapters import Adapter, Lora
from eridiff.lora.headers import header_bytes, table
from eridiff.lora.names import within
from eridiff.store.files import TEMPORARY_SUFFIX, atomic_path

_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
"""Metadata that speaks of the tensors as they were."""
_LEVEL = "text_model."


@dataclass(frozen=True)
class Addition:
    """A change of some rows of a tensor in a file, stored there in some form."""

    piece: Piece
    adapter: Adapter
    strength: float


Additions = Mapping[Path, Mapping[str, list[Addition]]]
"""For each file, what is added to its tensors."""


def merge(base: Base, lora: Lora, out: Path, *, strength: float = 1.0) -> list[Path]:
    """Write a base with a LoRA merged in, in the base's own layout.

    Sums are made in float64 and rounded once, to the type of the base's tensor.

    Args:
        base: in one original file, or in a diffusers folder.
        lora: read by `read_lora`.
        out: a file for a base in one file, a folder for a diffusers folder; must not exist yet.
        strength: the LoRA's multiplier, finite.

    Returns:
        The files whose tensors were changed.

    Raises:
        RecipeError: `out` exists, the strength is not finite, or the LoRA changes several files that are no
            folder.
        ModelError: the LoRA does not fit the base, a sum does not fit its type, or the base is quantised.
        StoreError: the disk is full.
    """
    if out.exists():
        raise RecipeError("there is a file or folder of that name already", where=out, fix="choose another")
    if not math.isfinite(strength):
        raise RecipeError("the LoRA's strength is no finite number", found=strength, fix="such as 0.8")
    added = _additions(base, lora, strength)
    note = f"{lora.metadata.get('sshs_model_hash', 'a LoRA')} x {strength:g}"
    root = _folder(base)
    if root is not None:
        return _merge_folder(root, out, added, note)
    if len(added) != 1:
        raise RecipeError(
            "the LoRA changes several files",
            found=", ".join(map(str, added)),
            fix="merge into a base that is one file or one folder",
        )
    (path, changes), *_ = added.items()
    with atomic_path(out) as aside:
        _rewrite(path, aside, changes, note)
    return [out]


def _folder(base: Base) -> Path | None:
    """The diffusers folder that a base is, or none."""
    denoiser = base.component(base.layout.denoiser)
    root = denoiser.path.parent
    return root if denoiser.path.is_dir() and (root / "model_index.json").is_file() else None


def _merge_folder(root: Path, out: Path, added: Additions, note: str) -> list[Path]:
    def changed(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder) / name in added]

    aside = out.with_name(f".{out.name}{TEMPORARY_SUFFIX}")
    try:
        shutil.copytree(root, aside, ignore=changed)
        for path, changes in added.items():
            _rewrite(path, aside / path.relative_to(root), changes, note)
        aside.replace(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [out / path.relative_to(root) for path in added]


def _additions(base: Base, lora: Lora, strength: float) -> dict[Path, dict[str, list[Addition]]]:
    added: dict[Path, dict[str, list[Addition]]] = {}
    placed: set[str] = set()
    for name in base.layout.models:
        layers = {key.removeprefix(_LEVEL): adapter for key, adapter in within(lora.layers, name).items()}
        if layers:
            for path, key, addition in _component_additions(base, name, layers, strength):
                added.setdefault(path, {}).setdefault(key, []).append(addition)
            placed |= {f"{name}.{key}" for key in within(lora.layers, name)}
    if lora.layers.keys() != placed:
        raise _not_in_base(base, lora.layers.keys() - placed)
    return added


def _component_additions(
    base: Base, name: str, layers: Mapping[str, Adapter], strength: float
) -> Iterator[tuple[Path, str, Addition]]:
    """File, key there, and addition for each adapted module of a component."""
    component, spec = base.component(name), base.layout.models[name]
    headers = {path: read_header(path).under(component.prefix) for path in component.weights}
    shapes = {key: info.shape for tensors in headers.values() for key, info in tensors.items()}
    if quantised.kind(shapes.keys()) is not None:
        raise ModelError("a LoRA cannot be merged into quantised weights", where=component.path)
    left = dict(layers)
    for target, (piece, *_) in fitting.plan(spec, shapes).items():
        module, _, leaf = target.rpartition(".")
        adapter = left.pop(module.removeprefix(_LEVEL), None) if leaf == "weight" else None
        if adapter is not None:
            _check(component.path, target, assembled_shape((piece,), shapes), adapter)
            path = next(path for path, tensors in headers.items() if piece.key in tensors)
            yield path, component.prefix + piece.key, Addition(piece, adapter, strength)
    if left:
        raise _not_in_base(base, left)


def _not_in_base(base: Base, names: Collection[str]) -> ModelError:
    return ModelError(
        "the LoRA adapts modules that the base lacks",
        where=base.source,
        found=f"{len(names)}, such as {', '.join(sorted(names)[:3])}",
    )


def _check(path: Path, target: str, shape: tuple[int, ...], adapter: Adapter) -> None:
    change = (adapter.up.shape[0], *adapter.down.shape[1:])
    if change != shape:
        raise ModelError(
            "the LoRA is for a base of other widths", where=f"{path}: {target}", found=change, wanted=shape
        )


def _rewrite(path: Path, out: Path, changes: Mapping[str, list[Addition]], note: str) -> None:
    """Copy a safetensors file tensor by tensor, changing some; never more than one is in memory."""
    header = read_header(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    with mapped(header) as tensors, out.open("wb") as file:
        file.write(_header(header, note))
        for key, data in _in_order(header, tensors, changes):
            _write(file, data)
            tensors.forget(key)


def _in_order(
    header: Header, tensors: MappedTensors, changes: Mapping[str, list[Addition]]
) -> Iterator[tuple[str, Tensor]]:
    for key, _ in sorted(header.tensors.items(), key=lambda item: item[1].start):
        tensor = tensors.view(key)
        if key in changes:
            tensor = _finite(_merged(tensor, changes[key]), f"{header.path}: {key}")
        yield key, tensor


def _merged(tensor: Tensor, additions: list[Addition]) -> Tensor:
    summed = tensor.double().clone()
    for addition in additions:
        start, stop = addition.piece.rows or (0, len(summed))
        change = addition.strength * addition.adapter.change()
        summed[start:stop] += _stored(change, addition.piece, summed[start:stop].shape)
    return summed.to(tensor.dtype)


def _finite(merged: Tensor, where: str) -> Tensor:
    """The tensor itself, which holds neither infinities nor what is no number."""
    low, high = merged.float().aminmax()  # one pass, a NaN comes through; float8 itself has no extremes
    if not (low.isfinite() and high.isfinite()):
        raise ModelError(
            "weights of the base with the LoRA in it are not finite",
            where=where,
            found=f"{low:g} to {high:g}, as {merged.dtype}",
            fix="merge with less strength or into a base of a wider type; or the LoRA or base is damaged",
        )
    return merged


def _stored(change: Tensor, piece: Piece, shape: torch.Size) -> Tensor:
    """A change in the form in which the file has the weight."""
    match piece.form:
        case "swapped":
            return change.roll(change.shape[0] // 2, dims=0)
        case "transposed":
            return change.mT
        case _:
            return change.view(shape)


def _header(header: Header, note: str) -> bytes:
    kept = {key: value for key, value in header.metadata.items() if key not in _STALE}
    return header_bytes({**kept, "eridiff.merged": note}, table(header))


def _write(file: IO[bytes], tensor: Tensor) -> None:
    file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)

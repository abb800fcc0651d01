"""The export gate: a LoRA file is published only if what programs load from it is what was trained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from eridiff.errors import ModelError
from eridiff.families.checkpoints.loranames import Format, Reader
from eridiff.families.checkpoints.tensorfile import mapped, read_header
from eridiff.lora import comfy, peft_reader
from eridiff.lora.adapters import Adapter, Lora
from eridiff.lora.encoders import NO_ENCODERS, Encoders
from eridiff.lora.export import structure_metadata, write_lora
from eridiff.lora.inject import Injected, lora_state
from eridiff.lora.names import within
from eridiff.lora.read import read_lora
from eridiff.store.files import atomic_path

if TYPE_CHECKING:
    from eridiff.families.base import ModelFamily

_COMPUTED = 1e-6
"""Relative error of float32 arithmetic that readers may make."""


def verify(
    path: Path,
    trained: Lora,
    denoiser: nn.Module,
    family: ModelFamily,
    *,
    file_format: Format,
    encoders: Encoders = NO_ENCODERS,
) -> tuple[Reader, ...]:
    """Check a LoRA file against the parameters that it was made of.

    It is read by our own reader, by a model of ComfyUI's rules, and by diffusers' `load_lora_weights` into a
    denoiser without weights. Each must find every layer, with the same change up to rounding in the file's
    type.

    Args:
        path: the file.
        trained: the float32 adapters.
        denoiser: the denoiser that was trained; only its class and configuration matter.
        family: has the names.
        file_format: names of the file.
        encoders: the text encoders that were trained, if any; as for the denoiser.

    Returns:
        The programs that were found to load it whole.

    Raises:
        ModelError: the file is damaged, or a reader misses a layer or changes it in another way.
    """
    state = stored(path)
    dtype = next(value.dtype for value in state.values() if value.ndim)
    read = read_lora(path, family, structure=trained.structure)
    _compare(path, "eridiff", trained.layers, read.layers, dtype)
    readers = readers_of(trained, family, file_format)
    for reader in readers:
        if reader == "comfyui":
            found = _by_comfy(path, state, trained, family)
        else:
            found = peft_reader.load(state, denoiser, family, encoders)
        _compare(path, reader, trained.layers, found, dtype)
    return readers


def publish(
    path: Path,
    lora: Lora,
    denoiser: nn.Module,
    family: ModelFamily,
    *,
    file_format: Format,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    encoders: Encoders = NO_ENCODERS,
    prove: Callable[[Path], object] | None = None,
) -> tuple[Reader, ...]:
    """Write a LoRA file that appears only if it passes `verify`; most arguments are those of `write_lora`.

    Args:
        path: where.
        lora: float32 adapters.
        denoiser: the denoiser that was trained.
        family: has the names.
        file_format: names of the tensors.
        dtype: type of the factors in the file.
        metadata: free-form strings.
        encoders: the text encoders that were trained, if any.
        prove: a further check of the file, which raises ModelError.

    Returns:
        The programs that were found to load it whole.

    Raises:
        ModelError: it does not pass; an earlier file of that name stays as it was.
        StoreError: the disk is full, or the place cannot be written.
    """
    with atomic_path(path) as aside:
        write_lora(aside, lora, family, file_format=file_format, dtype=dtype, metadata=metadata)
        try:
            readers = verify(aside, lora, denoiser, family, file_format=file_format, encoders=encoders)
            if prove is not None:
                prove(aside)
        except ModelError as error:
            raise ModelError(error.what, where=path, found=error.found, fix=error.fix) from error
    return readers


def rehearse(
    injected: Injected,
    denoiser: nn.Module,
    family: ModelFamily,
    *,
    file_format: Format,
    encoders: Encoders = NO_ENCODERS,
) -> tuple[Reader, ...]:
    """Check before training that programs will load what is going to be trained.

    Args:
        injected: what is in the denoiser.
        denoiser: the denoiser.
        family: has the names.
        file_format: names of the file to come.
        encoders: the text encoders that are trained, if any.

    Returns:
        The programs that will load it whole.

    Raises:
        ModelError: one of them would miss a layer or change it in another way.
    """
    state = {name: value.detach().cpu() for name, value in lora_state(denoiser, encoders).items()}
    random = torch.Generator().manual_seed(0)
    state |= {
        name: torch.randn(value.shape, generator=random)
        for name, value in state.items()
        if name.endswith(".lora_B.weight")
    }
    lora = injected.lora(state)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rehearsal.safetensors"
        metadata = structure_metadata(lora)
        write_lora(path, lora, family, file_format=file_format, dtype=torch.float32, metadata=metadata)
        return verify(path, lora, denoiser, family, file_format=file_format, encoders=encoders)


def stored(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in memory of their own.

    Raises:
        ModelError: the file is missing or damaged.
    """
    header = read_header(path)
    with mapped(header) as tensors:
        return {key: tensors.view(key).clone() for key in header.tensors}


def readers_of(trained: Lora, family: ModelFamily, file_format: Format) -> tuple[Reader, ...]:
    """Programs that a format is for. Diffusers' readers of some originals know published sizes only."""
    names = family.checkpoint.lora
    denoiser = within(trained.layers, family.checkpoint.denoiser)
    widths = {adapter.down.shape[1] for adapter in denoiser.values()}
    known = file_format != "kohya" or names.kohya_widths is None or not widths.isdisjoint(names.kohya_widths)
    return tuple(reader for reader in names.readers[file_format] if reader != "diffusers" or known)


def _by_comfy(
    path: Path, state: Mapping[str, Tensor], trained: Lora, family: ModelFamily
) -> dict[str, Adapter]:
    applied, unused = comfy.load(state, family.checkpoint, trained.structure)
    if unused:
        raise ModelError(
            "ComfyUI would not load a part of the LoRA file",
            where=path,
            found=f"{len(unused)} of {len(state)}: {', '.join(unused[:4])}",
        )
    found: dict[str, Adapter] = {}
    for loaded in applied:
        for part, module in enumerate(loaded.spot.link.diffusers):
            up, name = comfy.rows(loaded, part), f"{loaded.spot.component}.{module}"
            if up is not None and (name in trained.layers or up.any()):
                found[name] = Adapter(loaded.down, up, loaded.scale * loaded.down.shape[0])
    return found


def _compare(
    path: Path, reader: str, wanted: Mapping[str, Adapter], found: Mapping[str, Adapter], dtype: torch.dtype
) -> None:
    wrong = {name: "missing" for name in wanted.keys() - found.keys()}
    wrong |= {name: "not trained" for name in found.keys() - wanted.keys()}
    for name in wanted.keys() & found.keys():
        error, allowed = difference(wanted[name], found[name], dtype)
        if not error <= allowed:
            wrong[name] = f"{error:.3g} off, {allowed:.3g} allowed"
    if wrong:
        listed = "; ".join(f"{name} ({why})" for name, why in sorted(wrong.items())[:4])
        raise ModelError(
            f"the LoRA file as {reader} reads it is not what was trained",
            where=path,
            found=f"{len(wrong)} of {len(wanted)} layers: {listed}",
            fix="the file is not published; please report this",
        )


def difference(exact: Adapter, read: Adapter, dtype: torch.dtype) -> tuple[float, float]:
    """How far two changes of a weight are apart, and how far rounding the factors can bring them.

    Norms of products are taken from the factors' Gram matrices, so that no weight's full change is ever made.

    Args:
        exact: the factors before they were rounded.
        read: the factors after.
        dtype: type that they were rounded to.

    Returns:
        Frobenius norm of the difference, and its bound.
    """
    up, down = exact.up.double().flatten(1) * exact.scale, exact.down.double().flatten(1)
    other_up, other_down = read.up.double().flatten(1) * read.scale, read.down.double().flatten(1)
    if up.shape[0] != other_up.shape[0] or down.shape[1] != other_down.shape[1]:
        return float("inf"), 0.0
    left, right = torch.cat([up, -other_up], dim=1), torch.cat([down, other_down])
    error = float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())
    return error, _allowed(up, down, exact.scale, dtype)


def _allowed(up: Tensor, down: Tensor, scale: float, dtype: torch.dtype) -> float:
    """What rounding of the factors can change, column by column of `up` and row by row of `down`.

    So a large factor beside a small one, as in a LoRA that starts from weights, allows no more than their
    product loses.
    """
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    ups, downs = up.norm(dim=0), down.norm(dim=1)
    lost_up = info.eps * ups + max(scale, 1.0) * least * up.shape[0] ** 0.5
    lost_down = info.eps * downs + least * down.shape[1] ** 0.5
    lost = lost_up * downs + lost_down * ups + lost_up * lost_down
    return float(lost.sum() + _COMPUTED * up.norm() * down.norm())

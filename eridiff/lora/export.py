"""A LoRA as a safetensors file, in the names that other programs load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eridiff.errors import ModelError
from eridiff.families.checkpoints.loranames import Format
from eridiff.lora.adapters import Adapter, Lora
from eridiff.lora.headers import header_bytes
from eridiff.lora.names import named
from eridiff.lora.structures import STRUCTURE_KEY
from eridiff.store.files import write_atomic

if TYPE_CHECKING:
    from eridiff.families.base import ModelFamily


def write_lora(
    path: Path,
    lora: Lora,
    family: ModelFamily,
    *,
    file_format: Format,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    """Write a LoRA to a file.

    Args:
        path: where; replaced only when the new file is whole.
        lora: float32 adapters.
        family: has the names.
        file_format: see `tensors`.
        dtype: type of the factors in the file.
        metadata: from `metadata.describe`.

    Raises:
        ModelError: a factor is not finite, or not in that type.
        StoreError: the disk is full, or the place cannot be written.
    """
    write(path, tensors(lora, family, file_format=file_format, dtype=dtype), metadata)


def tensors(lora: Lora, family: ModelFamily, *, file_format: Format, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a LoRA file.

    Args:
        lora: float32 adapters.
        family: has the names.
        file_format: `kohya`, with alpha beside the factors, or `diffusers`, with the scale in them.
        dtype: type of the factors; alphas are float32.

    Raises:
        ModelError: a factor is not finite, or not in that type.
    """
    state: dict[str, Tensor] = {}
    for name, adapter in named(lora.layers, family.checkpoint, lora.structure, file_format).items():
        stored = adapter.to(dtype)
        _refuse_non_finite(name, adapter, stored)
        if file_format == "kohya":
            state[f"{name}.lora_down.weight"] = stored.down
            state[f"{name}.lora_up.weight"] = stored.up
            state[f"{name}.alpha"] = torch.tensor(adapter.alpha, dtype=torch.float32)
        else:
            state[f"{name}.lora_A.weight"] = stored.down
            state[f"{name}.lora_B.weight"] = stored.up
    return state


def resolve_format(asked: str, family: ModelFamily) -> Format:
    """The format that a recipe asks for; `auto` is the family's own."""
    if asked == "auto":
        return family.checkpoint.lora.default
    assert asked in ("kohya", "diffusers")
    return asked


def write(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata to a file that appears whole or not at all, hashes of its data included.

    Equal tensors and metadata make equal bytes.

    Raises:
        StoreError: the disk is full, or the place cannot be written.
    """
    from safetensors.torch import save

    plain = save(dict(state))
    start = 8 + int.from_bytes(plain[:8], "little")
    header, payload = json.loads(plain[8:start]), plain[start:]
    digest = hashlib.sha256(payload).hexdigest()
    legacy = _file({key: value for key, value in metadata.items() if key.startswith("ss_")}, header, payload)
    hashes = {
        "sshs_model_hash": digest,
        "sshs_legacy_hash": hashlib.sha256(legacy[0x100000:0x110000]).hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{digest}",
    }
    write_atomic(path, _file({**metadata, **hashes}, header, payload))


def _file(metadata: Mapping[str, str], tensors: Mapping[str, object], payload: bytes) -> bytes:
    """A safetensors file; metadata sorted, which the library's own writer does not promise."""
    return header_bytes(dict(sorted(metadata.items())), tensors) + payload


def structure_metadata(lora: Lora) -> dict[str, str]:
    """What lets a reader of the file know the denoiser's blocks, whatever its size."""
    return {STRUCTURE_KEY: json.dumps(dict(lora.structure), sort_keys=True)}


def _refuse_non_finite(name: str, exact: Adapter, stored: Adapter) -> None:
    for factor, kept in ((exact.down, stored.down), (exact.up, stored.up)):
        if not bool(kept.isfinite().all()):
            finite = bool(factor.isfinite().all())
            raise ModelError(
                "a LoRA weight is too large for the file's type" if finite else "a LoRA weight is not finite",
                where=name,
                found=f"up to {float(factor.abs().max()):.3g}",
                fix="set save.dtype to bf16 or fp32" if finite else "go back to an earlier checkpoint",
            )

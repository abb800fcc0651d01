"""What commands about model files do; torch is loaded only where tensors are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eridiff import families
from eridiff.errors import ModelError, RecipeError
from eridiff.families.checkpoints import inspection as bases
from eridiff.families.checkpoints.base import resolve
from eridiff.families.checkpoints.loranames import Format
from eridiff.families.checkpoints.tensorfile import read_header
from eridiff.lora import inspection as loras
from stages import pipeline

_TYPES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


def inspect(path: Path) -> dict[str, Any]:
    """What a model file, diffusers folder or LoRA file is, JSON-able.

    Raises:
        ModelError: there is nothing, or nothing that is known.
    """
    if path.is_dir():
        return bases.as_dict(bases.inspect_folder(path))
    header = read_header(path)
    if loras.is_lora(header):
        return loras.as_dict(loras.inspect_lora(header))
    found = bases.inspect_file(header)
    if not found.parts:
        raise ModelError(
            "this file holds no model that is known",
            where=path,
            found=", ".join(sorted(header.tensors)[:3]),
        )
    return bases.as_dict(found)


def export(lora: Path, out: Path, *, file_format: Format, dtype: str | None) -> dict[str, str]:
    """Writes a LoRA file under other names; its metadata is kept, as far as it speaks of the same things.

    Args:
        lora: a LoRA file of any naming.
        out: the new file.
        file_format: names of the new file.
        dtype: type of its factors; by default that of the old one.

    Returns:
        What was written.

    Raises:
        RecipeError: the new file exists already.
        ModelError: the old one cannot be read, or a weight does not fit the type.
    """
    if out.exists():
        raise RecipeError("there is a file of that name already", where=out, fix="choose another")
    header = read_header(lora)
    family = families.get(loras.family_of(header))
    wanted = dtype or _TYPES.get(next(iter(loras.inspect_lora(header).dtypes)), "fp32")

    from eridiff.devices import DTYPES
    from eridiff.lora.export import write_lora
    from eridiff.lora.metadata import carried
    from eridiff.lora.read import read_lora

    read = read_lora(lora, family)
    metadata = carried(read, family, file_format)
    write_lora(out, read, family, file_format=file_format, dtype=DTYPES[wanted], metadata=metadata)
    readers = family.checkpoint.lora.readers[file_format]
    return {"lora": str(out), "format": file_format, "dtype": wanted, "loads in": ", ".join(readers)}


def merge(recipe: Path, lora: Path, out: Path, *, strength: float) -> dict[str, Any]:
    """Writes a recipe's base with a LoRA merged in.

    Args:
        recipe: names the base.
        lora: a LoRA file of any naming.
        out: a file or folder, as the base is.
        strength: the LoRA's multiplier.

    Returns:
        What was written.

    Raises:
        RecipeError: the recipe is bad, or the result exists already.
        ModelError: base or LoRA cannot be read, or do not fit each other.
    """
    model = pipeline.load_recipe(recipe, ()).model
    family = families.get(model.family, model.options)
    base = resolve(model, family)

    from eridiff.lora import merge as merging
    from eridiff.lora.read import read_lora

    changed = merging.merge(base, read_lora(lora, family), out, strength=strength)
    return {"base": str(out), "changed": [str(path) for path in changed]}


__all__ = ["export", "inspect", "merge"]

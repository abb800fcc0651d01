"""Quantised weights: float8 with one scale a weight is undone exactly; other kinds are refused by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from eridiff.errors import ModelError
from eridiff.families.checkpoints.keys import Shape

if TYPE_CHECKING:
    from torch import Tensor

SCALE = ".scale_weight"
"""The number that a float8 weight is to be multiplied by, beside `.weight`."""

_BESIDE = (".scale_input", "scaled_fp8")
"""What scaled float8 files hold for float8 arithmetic, which is not done here."""

_KINDS = {
    ".comfy_quant": "ComfyUI's mixed quantisation",
    ".weight_scale": "float8 or float4 with block scales",
    ".weight_scale_2": "float4 with two scales",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".qweight": "Nunchaku or GPTQ",
    ".wscales": "Nunchaku",
    ".SCB": "bitsandbytes int8",
}


def kind(keys: Collection[str]) -> str | None:
    """What quantisation keys speak of; none where there is none, or where float8 stands alone."""
    for ending, name in _KINDS.items():
        if any(key.endswith(ending) for key in keys):
            return name
    return "float8 with a scale a weight" if any(key.endswith(SCALE) for key in keys) else None


def weights_only(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The tensors that are weights, not scales of weights.

    Raises:
        ModelError: they are quantised in a way that is not read.
    """
    found = kind(shapes.keys())
    if found in _KINDS.values():
        raise ModelError(
            f"weights are quantised, by {found}, which is not read here",
            wanted="fp32, bf16, fp16 or float8 weights",
            fix="get the file in bf16 or fp16",
        )
    return {key: shape for key, shape in shapes.items() if not key.endswith((SCALE, *_BESIDE))}


def unscaled(key: str, get: Callable[[str], Tensor], keys: Collection[str]) -> Tensor:
    """A tensor as it was before it was scaled into float8: float32 if it was, else as it lies."""
    scale = key.removesuffix(".weight") + SCALE
    if not key.endswith(".weight") or scale not in keys:
        return get(key)
    return get(key).float() * get(scale).float()

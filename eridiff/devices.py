"""The recipe's words for devices and precisions in torch's terms."""

from __future__ import annotations

import gc
from collections.abc import Mapping

import torch

from eridiff.errors import RecipeError

DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Precisions of a recipe."""


def find_device(name: str) -> torch.device:
    """The device that a recipe names; `auto` is the first GPU, else the CPU.

    Raises:
        RecipeError: there is no such device here.
    """
    if name == "auto":
        return torch.device(_best())
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            "This machine has no such device.",
            where="device",
            found=name,
            wanted=f"auto, or one that torch has here, such as {_best()}",
        ) from error
    return device


def free_memory() -> None:
    """Gives memory of models that nobody holds any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"

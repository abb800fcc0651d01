"""The recipe's words for devices and precisions in torch's terms; what a device can do, and whose it is."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch

from eridiff.device_lock import device_lock
from eridiff.errors import RecipeError

logger = logging.getLogger(__name__)

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


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on `device`, without waiting for what a GPU is at."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def worth_compiling(
    wanted: bool | Literal["auto"], device: torch.device, *, num_items: int, break_even: int
) -> bool:
    """Whether to compile, as a recipe's `compile` says: `auto` does for many items, on a GPU with Triton."""
    if wanted == "auto":
        return num_items >= break_even and has_triton(device)
    return wanted


def has_triton(device: torch.device) -> bool:
    """Whether kernels in Triton's language run there: on GPUs, where it is installed and can compile."""
    return device.type == "cuda" and _triton_compiles()


@cache
def _triton_compiles() -> bool:
    if find_spec("triton") is None:
        return False
    try:
        from triton.runtime import driver  # pyright: ignore[reportMissingImports]

        _ = driver.active  # makes its own part, with the C compiler and Python's headers that kernels need
    except Exception as error:  # of any kind: what a compiler says, a missing library
        logger.warning(
            "Triton cannot compile here, so torch's own kernels run, which take longer: %s. "
            "It needs a C compiler and Python's headers.",
            error,
        )
        return False
    return True


@contextmanager
def reserved(device: torch.device) -> Iterator[None]:
    """The device for this job alone; memory of models goes back to it before the next job gets it.

    The block should call a function that holds the models: what the block itself holds cannot go back.
    """
    with device_lock(str(device)):
        try:
            yield
        finally:
            free_memory()


def free_memory() -> None:
    """Gives memory of models that nobody holds any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """On a GPU, float32 products round their factors to TensorFloat-32's 10 bits, as convolutions do anyway.

    Sums and what is stored in between stay float32. Elsewhere this changes nothing.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"

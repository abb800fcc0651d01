"""Which attention a GPU runs, and the proof that its gradients are right before the first step.

cuDNN is the fastest on Hopper and later. Its backward pass needs gradients that always lie in memory the same
way, which `families.attention.attend` sees to; where they did not, torch 2.11 with cuDNN 9.19 gave wrong
gradients from right outputs. So backends are always named here, and the gradients of the run's own first
batch are compared with those of plain matrix products.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import (
    SDPBackend,
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
    sdpa_kernel,
)

from eridiff.errors import ModelError
from eridiff.families.base import ModelFamily
from eridiff.training.compiling import eagerly
from eridiff.training.recompute import recomputing
from eridiff.training.step import Batch, losses

logger = logging.getLogger(__name__)

BACKENDS: Mapping[str, tuple[SDPBackend, ...]] = {
    "auto": (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
    "cudnn": (SDPBackend.CUDNN_ATTENTION,),
    "flash": (SDPBackend.FLASH_ATTENTION,),
    "flash3": (SDPBackend.FLASH_ATTENTION,),
    "flash4": (SDPBackend.FLASH_ATTENTION,),
    "efficient": (SDPBackend.EFFICIENT_ATTENTION,),
    "math": (SDPBackend.MATH,),
}
"""`train.attention` to the backends that may run, first choice first; see `backends` for `auto`."""

INSTALLED: Mapping[str, tuple[str, str]] = {
    "flash3": ("FA3", "flash-attn-3"),
    "flash4": ("FA4", "flash-attn-4"),
}
"""Kernels that torch runs in the place of its FlashAttention-2: torch's name for them, and the package."""

CUDNN_FIRST = (9, 0)
"""Compute capability from which `auto` asks cuDNN first: half to two thirds of Flash's time on Hopper."""

NO_KERNEL = ("No available kernel", "No viable backend", "cuDNN Frontend error")
"""How torch says that none of the named backends takes the tensors at hand."""

TOLERANCE: Mapping[torch.dtype, float] = {torch.float32: 5e-3, torch.bfloat16: 1e-1}
"""Largest accepted |g - g_math| / |g_math| over all trained parameters, by the precision of the products.

Rounding alone makes some percent in bfloat16 in the deepest denoisers; a wrong backward pass makes 100 %. In
float32 it makes 1e-6, but 1e-3 where there are convolutions, whose factors cuDNN rounds to TensorFloat-32.
"""


def backends(name: str) -> tuple[SDPBackend, ...]:
    """The backends that may run under `name` on the current device, first choice first."""
    if name == "auto" and torch.cuda.is_available() and torch.cuda.get_device_capability() >= CUDNN_FIRST:
        return (*BACKENDS["cudnn"], *BACKENDS["auto"])
    return BACKENDS[name]


@contextmanager
def attention(name: str) -> Iterator[None]:
    """A context in which attention runs on the `backends` of a name; backward passes belong inside, too.

    Raises:
        ModelError: that backend is not installed, or cannot run what the denoiser asks of it.
    """
    try:
        with _kernels(name), sdpa_kernel(list(backends(name)), set_priority=True):
            yield
    except RuntimeError as error:
        if not any(text in str(error) for text in NO_KERNEL):
            raise
        raise ModelError(
            f"the attention backend {name!r} cannot run this denoiser on this device",
            where="train.attention",
            found=str(error),
            fix="set train.attention: flash, efficient or math",
        ) from error


@contextmanager
def _kernels(name: str) -> Iterator[None]:
    """A context in which torch runs the kernels of another package, where `name` is one of `INSTALLED`."""
    if name not in INSTALLED:
        yield
        return
    kernels, package = INSTALLED[name]
    before = current_flash_attention_impl()
    try:
        activate_flash_attention_impl(kernels)
    except (ImportError, RuntimeError) as error:
        raise ModelError(
            f"the attention backend {name!r} is not installed",
            where="train.attention",
            found=str(error),
            fix=f"install {package} for this GPU and this torch, or set train.attention: auto",
        ) from error
    try:
        yield
    finally:
        if before is None:
            restore_flash_attention_impl()
        else:
            activate_flash_attention_impl(before)


def check_gradients(
    family: ModelFamily,
    denoiser: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    run: Callable[[Batch], Tensor],
    *,
    backend: str,
    dtype: torch.dtype,
) -> float:
    """Compares the loss gradients of a real batch with those of uncompiled code and plain matrix products.

    Where the plain products do not fit into memory, the latents are cropped to half their sides. Compiled
    code, which is made for sizes that occur, is then left out. The log says so.

    Args:
        family: makes the prediction and the loss.
        denoiser: with its LoRA.
        parameters: name to trained parameter.
        batch: on the denoiser's device.
        run: gives the flat gradient of a batch's mean loss as training computes it, whichever way that is.
        backend: a key of `BACKENDS`, under which `run` runs.
        dtype: the precision of the products.

    Returns:
        The relative difference.

    Raises:
        ModelError: the difference exceeds `TOLERANCE`.
    """
    if backend == "auto":
        order = [choice.name.lower().removesuffix("_attention") for choice in backends(backend)]
        logger.info("Attention 'auto' is the first of %s that takes the tensors.", ", ".join(order))
    with recomputing(denoiser):
        checked, wanted = _reference(family, denoiser, parameters, batch)
    with attention(backend), nullcontext() if checked is batch else eagerly():
        found = run(checked)
    apart, size = float((found - wanted).norm()), float(wanted.norm())
    difference = apart / size if size else apart
    if not difference <= TOLERANCE[dtype]:  # also catches NaN
        raise ModelError(
            f"with the attention backend {backend!r}, a step gives wrong gradients on this device",
            where="train.attention",
            found=f"relative difference {difference:.2g} from plain products, at latents {_size(checked)}",
            wanted=f"at most {TOLERANCE[dtype]:g}",
            fix="set train.attention: flash, efficient or math; if that does not help, train.compile: false",
        )
    return difference


def _reference(
    family: ModelFamily, denoiser: nn.Module, parameters: Mapping[str, nn.Parameter], batch: Batch
) -> tuple[Batch, Tensor]:
    """The batch, cropped if need be, and its gradient by plain products, one sample at a time."""
    try:
        parts = [
            gradient(family, denoiser, parameters, batch.only(number), backend="math")
            for number in range(len(batch))
        ]
        return batch, torch.stack(parts).mean(dim=0)
    except torch.OutOfMemoryError:
        smaller = batch.cropped()
        if smaller is None:
            raise
        logger.info(
            "Plain attention at latents %s does not fit into memory: checking gradients at %s, "
            "and not those of compiled code.",
            _size(batch),
            _size(smaller),
        )
    torch.cuda.empty_cache()
    return _reference(family, denoiser, parameters, smaller)


def gradient(
    family: ModelFamily,
    denoiser: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    *,
    backend: str,
) -> Tensor:
    """The gradient of the mean loss over all trained parameters, flat float32, by uncompiled code.

    `.grad` is not touched.
    """
    with attention(backend), eagerly():
        loss = losses(family, denoiser, batch).weighted.mean()
        parts = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    pairs = zip(parts, parameters.values(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().float() for g, p in pairs])


def _size(batch: Batch) -> str:
    return "x".join(map(str, batch.clean.shape[-2:]))

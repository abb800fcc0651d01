"""How the components of a base come into memory: frozen, on their device, each by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from eridiff.families.checkpoints.base import Base


def load_diffusers(base: Base, name: str, kind: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
    """A frozen diffusers model of class `kind`, in evaluation mode."""
    path = base.component(name).path
    model = kind.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
    return model.to(device).eval().requires_grad_(False)


def load_transformers(base: Base, name: str, kind: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
    """A frozen transformers model of class `kind`, in evaluation mode."""
    path = base.component(name).path
    model = kind.from_pretrained(path, dtype=dtype, local_files_only=True)
    return model.to(device).eval().requires_grad_(False)


def load_tokenizer(base: Base, name: str, kind: Any) -> Any:
    """A tokenizer of class `kind`."""
    return kind.from_pretrained(base.component(name).path, local_files_only=True)


def load_scheduler(base: Base, kind: Any, changes: Mapping[str, Any] | None = None) -> Any:
    """The base's scheduler as a `kind`, with `changes` to its configuration."""
    return kind.from_pretrained(base.component("scheduler").path, local_files_only=True, **(changes or {}))

"""Nested states, such as an optimizer's, as flat tensors and JSON: nothing is pickled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def pack(state: object) -> tuple[dict[str, Tensor], Any]:
    """A nested state as flat tensors and a JSON-able skeleton that says where each goes.

    Args:
        state: dicts (string or integer keys), lists, tuples, tensors, numbers, strings and None.

    Raises:
        TypeError: it holds something else.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _pack(state, "", tensors)


def _pack(value: object, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # Each tensor gets bytes of its own: safetensors refuses shared and strided memory.
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, f"{path}/{number}", tensors) for number, item in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no infinity; Prodigy's default growth rate is one
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"optimizer state {path!r} is a {type(value).__name__}, which cannot be kept on disk")


def unpack(tensors: Mapping[str, Tensor], skeleton: Any) -> Any:
    """The nested state that `pack` took apart.

    Raises:
        KeyError: a tensor is missing.
    """
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack(tensors, item) for key, item in content}
    if kind == "list":
        return [unpack(tensors, item) for item in content]
    if kind == "tuple":
        return tuple(unpack(tensors, item) for item in content)
    return float(content) if kind == "float" else content

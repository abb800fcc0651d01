"""Components from files into memory: one tensor at a time, only those of the component asked for.

Weights are copied out of a memory map whose pages are let go at once, so that the process never holds much
more than the component itself, and every layout of the same base gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eridiff.errors import ModelError
from eridiff.families.checkpoints import fitting, quantised
from eridiff.families.checkpoints.component import Component
from eridiff.families.checkpoints.facts import configuration
from eridiff.families.checkpoints.keys import Assembly, Shape, assemble, assembled_shape
from eridiff.families.checkpoints.layout import ModelSpec
from eridiff.families.checkpoints.tensorfile import Header, MappedTensors, mapped, read_header

if TYPE_CHECKING:
    from eridiff.families.checkpoints.base import Base


def load_model(base: Base, name: str, *, device: torch.device, dtype: torch.dtype) -> Any:
    """A component of a base: frozen, in evaluation mode.

    Args:
        base: where it lies.
        name: its folder's name in a diffusers repository.
        device: where its weights go.
        dtype: floating-point type of its weights.

    Raises:
        ModelError: it is missing or damaged, or its weights do not fit the model.
    """
    component, spec = base.component(name), base.layout.models[name]
    headers = [read_header(path) for path in component.weights]
    try:
        model, plan = _planned(component, spec, headers)
        _fill(model, plan, headers, component.prefix, device=device, dtype=dtype)
        fitting.make_buffers(model, device)
    except ModelError as error:
        where = f"{component.weights[0]} ({name})"
        raise ModelError(
            error.what, where=error.where or where, found=error.found, wanted=error.wanted, fix=error.fix
        ) from error
    return model.eval().requires_grad_(False)


def _planned(
    component: Component, spec: ModelSpec, headers: Sequence[Header]
) -> tuple[nn.Module, Mapping[str, Assembly]]:
    """The model without weights, and where each of its tensors lies."""
    shapes = {key: info.shape for header in headers for key, info in header.under(component.prefix).items()}
    found = fitting.plan(spec, shapes)
    sizes = {key: assembled_shape(assembly, shapes) for key, assembly in found.items()}
    model = _build(component, spec, sizes)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return model, fitting.fit(spec, found, wanted, shapes)


def _build(component: Component, spec: ModelSpec, shapes: Mapping[str, Shape]) -> nn.Module:
    import diffusers
    import transformers

    config = configuration(component, spec, shapes)
    with torch.device("meta"):
        if hasattr(transformers, spec.class_name):
            kind = getattr(transformers, spec.class_name)
            return kind(kind.config_class.from_dict(config))
        return getattr(diffusers, spec.class_name).from_config(config)


def _fill(
    model: nn.Module,
    plan: Mapping[str, Assembly],
    headers: Sequence[Header],
    prefix: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give a model without weights those of the plan; tensors that it shares stay shared."""
    wide = set(getattr(model, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set()
    names: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    with ExitStack() as files:
        owners: dict[str, MappedTensors] = {}
        for header in headers:
            tensors = files.enter_context(mapped(header))
            owners |= dict.fromkeys(header.tensors, tensors)

        def view(key: str) -> Tensor:
            return owners[key].view(key)

        for shared in names.values():
            assembly = plan[shared[0]]
            tensor = assemble(assembly, lambda key: quantised.unscaled(prefix + key, view, owners.keys()))
            kept = wide.intersection(shared[0].split("."))
            _put(model, shared, _copied(tensor, device, torch.float32 if kept else dtype))
            for piece in assembly:
                if piece.form != "identity":
                    owners[prefix + piece.key].forget(prefix + piece.key)


def _copied(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor in memory of its own, whatever it was a view of."""
    if not tensor.is_floating_point():
        return tensor.to(device, copy=True)
    if device.type == "cpu":
        return torch.empty(tensor.shape, dtype=dtype).copy_(tensor)
    return tensor.to(device).to(dtype).contiguous()


def _put(model: nn.Module, names: Sequence[str], tensor: Tensor) -> None:
    """Set one parameter or buffer under all of its names."""
    parameter = nn.Parameter(tensor, requires_grad=False) if tensor.is_floating_point() else None
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf in module._parameters:
            module._parameters[leaf] = parameter
        else:
            module._buffers[leaf] = tensor

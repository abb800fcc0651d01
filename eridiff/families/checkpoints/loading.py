"""Components from files into memory: one tensor at a time, only those of the component asked for.

Weights are copied out of a memory map whose pages are let go at once, so that the process never holds much
more than the component itself, and every layout of the same base gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
from eridiff.families.frozen import fp8
from eridiff.families.frozen.keep import PLAIN, Keep, away, block_of, blocks_of
from eridiff.families.frozen.linear import FrozenLinear, quantise_linears

if TYPE_CHECKING:
    from eridiff.families.checkpoints.base import Base


def load_model(base: Base, name: str, *, device: torch.device, dtype: torch.dtype, keep: Keep = PLAIN) -> Any:
    """A component of a base: frozen, in evaluation mode.

    Args:
        base: where it lies.
        name: its folder's name in a diffusers repository.
        device: where its weights go, and where they are quantised.
        dtype: floating-point type of its weights.
        keep: what is kept in fewer bits, and which blocks stay in system memory.

    Raises:
        ModelError: it is missing or damaged, its weights do not fit the model, or the device or a package
            that a quantisation needs is not there.
    """
    component, spec = base.component(name), base.layout.models[name]
    headers = [read_header(path) for path in component.weights]
    if keep.quantize == "fp8":
        fp8.refuse_without_hardware(device)
    try:
        model, plan = _planned(component, spec, headers)
        if keep.quantize != "none":
            quantise_linears(model, spec.blocks, keep.quantize)
        places = _Places(device, dtype, spec.blocks, _away(model, spec.blocks, keep))
        _fill(model, plan, headers, component.prefix, places)
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


@dataclass(frozen=True)
class _Places:
    """Where tensors go, and as what.

    Attributes:
        device: where they are worked on, and where most stay.
        dtype: floating-point type.
        blocks: regular expression of the names of repeated blocks.
        away: blocks that stay in system memory.
    """

    device: torch.device
    dtype: torch.dtype
    blocks: str
    away: frozenset[str]

    def home(self, name: str) -> torch.device:
        """Where the tensor of that name stays."""
        return torch.device("cpu") if block_of(name, self.blocks) in self.away else self.device


def _away(model: nn.Module, blocks: str, keep: Keep) -> frozenset[str]:
    names = blocks_of((name for name, _ in model.named_modules()), blocks)
    return away(names, keep.offload)


def _fill(
    model: nn.Module,
    plan: Mapping[str, Assembly],
    headers: Sequence[Header],
    prefix: str,
    places: _Places,
) -> None:
    """Give a model without weights those of the plan; tensors that it shares stay shared."""
    half = places.dtype == torch.float16
    wide = set(getattr(model, "_keep_in_fp32_modules", None) or ()) if half else set()
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
            assembly, home = plan[shared[0]], places.home(shared[0])
            tensor = assemble(assembly, lambda key: quantised.unscaled(prefix + key, view, owners.keys()))
            layer = model.get_submodule(shared[0].rpartition(".")[0])
            if isinstance(layer, FrozenLinear) and shared[0].endswith(".weight"):
                layer.take(tensor.to(places.device), home)
            else:
                kept = wide.intersection(shared[0].split("."))
                _put(model, shared, _copied(tensor, home, torch.float32 if kept else places.dtype))
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

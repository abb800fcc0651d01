"""From the tensors of a file to the tensors of a model: names, ties, and what files leave out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eridiff.errors import ModelError
from eridiff.families.checkpoints import clip, quantised, t5
from eridiff.families.checkpoints.component import Component
from eridiff.families.checkpoints.keys import Assembly, Piece, Shape, assembled_shape, to_diffusers
from eridiff.families.checkpoints.layout import ModelSpec
from eridiff.families.checkpoints.tensorfile import read_header

if TYPE_CHECKING:
    import torch
    from torch import nn

_IGNORED = ("position_ids", "logit_scale")
_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def plan(spec: ModelSpec, shapes: Mapping[str, Shape]) -> dict[str, Assembly]:
    """Where each tensor lies, under diffusers' or transformers' names.

    Raises:
        ModelError: some tensors have no place in such a model.
    """
    weights = quantised.weights_only(shapes)
    if spec.names is not None and spec.names.is_original(weights):
        return to_diffusers(weights, spec.names)
    return {_modern(key): (Piece(key),) for key in weights if not key.endswith(_IGNORED)}


def shapes_of(spec: ModelSpec, component: Component) -> dict[str, Shape]:
    """Shapes of a component's tensors under diffusers' or transformers' names, from its files' headers.

    Raises:
        ModelError: the files are damaged, or some tensors have no place in such a model.
    """
    shapes = {
        key: info.shape
        for path in component.weights
        for key, info in read_header(path).under(component.prefix).items()
    }
    return {key: assembled_shape(assembly, shapes) for key, assembly in plan(spec, shapes).items()}


def fit(
    spec: ModelSpec, found: Mapping[str, Assembly], wanted: Mapping[str, Shape], shapes: Mapping[str, Shape]
) -> dict[str, Assembly]:
    """The plan for exactly the tensors that a model has.

    Args:
        spec: what the component is.
        found: where tensors lie, by `plan`.
        wanted: shapes of the model's tensors.
        shapes: shapes of the file's tensors.

    Raises:
        ModelError: a tensor is missing, left over, or of another shape.
    """
    full = dict(found)
    if spec.kind in ("clip_l", "clip_g"):
        full = clip.fit(full, wanted)
    if spec.kind == "t5xxl":
        full = t5.both_tables(full)
    _refuse("are missing from the file", wanted.keys() - full.keys())
    _refuse("have no place in the model", full.keys() - wanted.keys())
    wrong = [
        f"{key} {assembled_shape(full[key], shapes)} instead of {wanted[key]}"
        for key in wanted
        if assembled_shape(full[key], shapes) != wanted[key]
    ]
    _refuse("have another shape than the model's", wrong)
    return full


def make_buffers(model: nn.Module, device: torch.device) -> None:
    """Fill the buffers that no file holds: the positions of CLIP's tokens.

    Raises:
        ModelError: a buffer or weight is still without values.
    """
    import torch

    for module in model.modules():
        positions = module._buffers.get("position_ids")
        if positions is not None and positions.is_meta:
            module._buffers["position_ids"] = torch.arange(positions.shape[-1], device=device).expand(1, -1)
    empty = [name for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_meta]
    _refuse("were not filled", empty)


def _modern(key: str) -> str:
    """Today's name of a tensor that old diffusers files call otherwise."""
    if ".mid_block.attentions.0." in key:
        path, name, leaf = key.rsplit(".", 2)
        return f"{path}.{_OLD_VAE_ATTENTION.get(name, name)}.{leaf}"
    return key


def _refuse(what: str, names: Any) -> None:
    listed = sorted(names)
    if listed:
        more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
        raise ModelError(f"weights {what}", found="; ".join(listed[:4]) + more)

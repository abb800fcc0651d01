"""What a model file or folder is, told from headers and configurations alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from eridiff.errors import ModelError
from eridiff.families.checkpoints import folder, quantised, recognise
from eridiff.families.checkpoints.base import variant_of
from eridiff.families.checkpoints.component import Component
from eridiff.families.checkpoints.layout import CheckpointLayout, Kind, ModelSpec
from eridiff.families.checkpoints.layouts import LAYOUTS
from eridiff.families.checkpoints.recognise import Found
from eridiff.families.checkpoints.tensorfile import Header, TensorInfo, read_header


@dataclass(frozen=True)
class Part:
    """A component in a file or folder.

    Attributes:
        kind: what it is.
        prefix: what stands before its keys.
        tensors: how many it has.
        parameters: how many numbers they hold.
        nbytes: how many bytes.
        dtypes: tensors of each type, by safetensors' names.
        quantisation: how weights are quantised, or none.
    """

    kind: Kind
    prefix: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: Mapping[str, int]
    quantisation: str | None


@dataclass(frozen=True)
class Inspection:
    """What a base, or a part of one, is.

    Attributes:
        path: the file or folder.
        family: name of the family, or several that it could belong to; none if it is unknown.
        variant: of the denoiser, if there is one.
        parts: the components.
        unknown: keys that belong to no component.
        metadata: the file's free-form strings.
    """

    path: Path
    family: str | None
    variant: str | None
    parts: tuple[Part, ...]
    unknown: tuple[str, ...]
    metadata: Mapping[str, str]


def inspect_file(header: Header) -> Inspection:
    """What a safetensors file with model weights is."""
    found = recognise.components(header)
    parts = tuple(_part(item.kind, item.prefix, header.under(item.prefix)) for item in _outermost(found))
    prefixes = tuple(item.prefix for item in found)
    unknown = tuple(key for key in header.tensors if not any(key.startswith(prefix) for prefix in prefixes))
    layout = _layout(found)
    variant = None
    if layout is not None:
        prefix = recognise.prefix_of(header, layout.models[layout.denoiser])
        if prefix is not None:
            variant = _variant(Component(layout.denoiser, header.path, (header.path,), prefix=prefix), layout)
    family = layout.family if layout is not None else _common(item.families for item in found)
    return Inspection(header.path, family, variant, parts, unknown, header.metadata)


def inspect_folder(path: Path) -> Inspection:
    """What a diffusers folder is: a whole base, or one component.

    Raises:
        ModelError: it is neither.
    """
    for layout in LAYOUTS:
        try:
            components = folder.components(path, layout, variant=None)
        except ModelError:
            continue
        parts = tuple(
            _folder_part(layout.models[name], components[name])
            for name in layout.models
            if name in components
        )
        denoiser = components.get(layout.denoiser)
        variant = _variant(denoiser, layout) if denoiser is not None else None
        return Inspection(path, layout.family, variant, parts, (), {})
    return _single_component(path)


def _single_component(path: Path) -> Inspection:
    if not folder.has_weights(path):
        raise ModelError(
            "this folder holds no model that is known",
            where=path,
            wanted="model_index.json, or config.json and a safetensors file",
        )
    named = folder.class_name(path / "config.json")
    matches = [
        (layout, name, spec)
        for layout in LAYOUTS
        for name, spec in layout.models.items()
        if named in (spec.class_name, None)
    ]
    if not matches:
        raise ModelError("this folder holds another kind of model", where=path / "config.json", found=named)
    layout, name, spec = matches[0]
    component = folder.model_component(path, name, variant=None)
    denoiser = spec.kind == "transformer"
    return Inspection(
        path,
        _common([[layout.family for layout, _, _ in matches]]),
        _variant(component, layout) if denoiser else None,
        (_folder_part(spec, component),),
        (),
        {},
    )


def _outermost(found: Iterable[Found]) -> list[Found]:
    """Components at distinct prefixes; of two kinds at one prefix the first."""
    by_prefix: dict[str, Found] = {}
    for item in found:
        by_prefix.setdefault(item.prefix, item)
    return list(by_prefix.values())


def _folder_part(spec: ModelSpec, component: Component) -> Part:
    tensors: dict[str, TensorInfo] = {}
    for path in component.weights:
        tensors |= read_header(path).tensors
    return _part(spec.kind, "", tensors)


def _part(kind: Kind, prefix: str, tensors: Mapping[str, TensorInfo]) -> Part:
    dtypes = Counter(info.dtype for info in tensors.values())
    scaled = quantised.kind(tensors.keys())
    plain = "float8" if any(dtype.startswith("F8_E") for dtype in dtypes) else None
    return Part(
        kind,
        prefix,
        len(tensors),
        sum(prod(info.shape) for info in tensors.values()),
        sum(info.stop - info.start for info in tensors.values()),
        dict(dtypes.most_common()),
        scaled or plain,
    )


def _layout(found: Iterable[Found]) -> CheckpointLayout | None:
    """The family of the denoiser among components."""
    names = {item.families[0] for item in found if item.kind == "transformer"}
    return next((layout for layout in LAYOUTS if layout.family in names), None)


def _variant(denoiser: Component, layout: CheckpointLayout) -> str | None:
    """The denoiser's variant, or none where neither a configuration nor the shapes tell it."""
    try:
        return variant_of(denoiser, layout)
    except ModelError:
        return None


def _common(families: Iterable[Iterable[str]]) -> str | None:
    """Names of the families that everything found could belong to."""
    sets = [list(dict.fromkeys(names)) for names in families]
    if not sets:
        return None
    return " or ".join(name for name in sets[0] if all(name in names for names in sets)) or None


def as_dict(found: Inspection) -> dict[str, Any]:
    """An inspection as JSON."""
    return {
        "what": "base" if found.variant is not None or len(found.parts) > 1 else "part of a base",
        "path": str(found.path),
        "family": found.family,
        "variant": found.variant,
        "parts": [
            {
                "part": part.kind,
                "prefix": part.prefix,
                "tensors": part.tensors,
                "parameters": part.parameters,
                "bytes": part.nbytes,
                "dtypes": dict(part.dtypes),
                "quantisation": part.quantisation,
            }
            for part in found.parts
        ],
        "unknown_keys": list(found.unknown[:10]),
        "metadata": dict(found.metadata),
    }

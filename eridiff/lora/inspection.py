"""What a LoRA file is: rank, alpha, format, targets and where it comes from; without torch."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eridiff.errors import ModelError
from eridiff.families.checkpoints.layout import CheckpointLayout
from eridiff.families.checkpoints.layouts import LAYOUTS
from eridiff.families.checkpoints.tensorfile import Header
from eridiff.lora.keys import ModuleKeys, grouped
from eridiff.lora.resolving import Names
from eridiff.lora.structures import structure_of
from eridiff.lora.thumbnail import THUMBNAIL, described

_OURS = "eridiff."


@dataclass(frozen=True)
class LoraInspection:
    """A LoRA file.

    Attributes:
        path: the file.
        family: name of the family whose modules it adapts.
        naming: `kohya`, `diffusers` or `original`.
        modules: number of adapted modules, by component.
        targets: number of modules of each kind, their numbers left out.
        ranks: number of modules of each rank.
        scales: number of modules of each alpha/rank; 1 where a file has no alpha.
        dtypes: tensors of each type.
        thumbnail: what kind of picture is inside, if any.
        metadata: free-form strings, but for the thumbnail.
        provenance: those that this program wrote, without their prefix.
    """

    path: Path
    family: str
    naming: str
    modules: Mapping[str, int]
    targets: Mapping[str, int]
    ranks: Mapping[int, int]
    scales: Mapping[float, int]
    dtypes: Mapping[str, int]
    thumbnail: str | None
    metadata: Mapping[str, str]
    provenance: Mapping[str, str]


def is_lora(header: Header) -> bool:
    """Whether a file has factors of LoRA in it, or those of its relatives."""
    marks = (".lora_", "_lora.", ".lora.", ".lokr_", ".hada_", ".oft_", ".dora_scale")
    return any(mark in key for key in header.tensors for mark in marks)


def inspect_lora(header: Header) -> LoraInspection:
    """What a LoRA file is.

    Raises:
        ModelError: it is of no family that is known, or of a kind that is not read.
    """
    modules = grouped(header)
    layout, places = _recognised(header, modules)
    first = next(iter(modules))
    ranks, scales, components, targets = Counter(), Counter(), Counter(), Counter()
    for name, keys in modules.items():
        component, module = places[name]
        components[component] += 1
        targets[re.sub(r"(?<=\.)\d+(?=\.)", "*", module)] += 1
        rank = header.tensors[keys.down].shape[0] if keys.down else 0
        ranks[rank] += 1
        scales[_alpha(header, keys, rank) / rank if rank else 0.0] += 1
    shown = {key: value for key, value in header.metadata.items() if key != THUMBNAIL}
    return LoraInspection(
        path=header.path,
        family=layout.family,
        naming=_naming(first, layout),
        modules=dict(components),
        targets=dict(targets.most_common()),
        ranks=dict(ranks.most_common()),
        scales=dict(scales.most_common()),
        dtypes=dict(Counter(info.dtype for info in header.tensors.values()).most_common()),
        thumbnail=described(header.metadata),
        metadata={key: value for key, value in shown.items() if not key.startswith(_OURS)},
        provenance={k.removeprefix(_OURS): v for k, v in shown.items() if k.startswith(_OURS)},
    )


def family_of(header: Header) -> str:
    """Name of the family that a LoRA file is for.

    Raises:
        ModelError: it is of none that is known.
    """
    return _recognised(header, grouped(header))[0].family


def _recognised(
    header: Header, modules: Mapping[str, ModuleKeys]
) -> tuple[CheckpointLayout, dict[str, tuple[str, str]]]:
    """The family that has all of a file's modules, and component and module of each name."""
    for layout in LAYOUTS:
        structure = structure_of(header, modules, layout)
        if structure is None:
            continue
        names = Names(layout, structure)
        places = {name: place for name in modules if (place := names.find(name)) is not None}
        if len(places) == len(modules):
            return layout, {
                name: (
                    place.component,
                    place.link.diffusers[0] if len(place.link.diffusers) == 1 else place.link.original,
                )
                for name, place in places.items()
            }
    raise ModelError(
        "this LoRA is for no model that is known here",
        where=header.path,
        found=", ".join(_samples(modules)),
        wanted=", ".join(layout.family for layout in LAYOUTS),
    )


def _samples(names: Iterable[str]) -> list[str]:
    return sorted(names)[:3]


def _naming(name: str, layout: CheckpointLayout) -> str:
    if name.startswith("lora_"):
        return "kohya"
    return "original" if "diffusion_model." in name else "diffusers"


def _alpha(header: Header, keys: ModuleKeys, rank: int) -> float:
    """A module's alpha; its rank if the file has none."""
    if keys.alpha is None:
        return float(rank)
    info = header.tensors[keys.alpha]
    with header.path.open("rb") as file:
        file.seek(info.start)
        data = file.read(info.stop - info.start)
    match info.dtype, len(data):
        case "F32", 4:
            return struct.unpack("<f", data)[0]
        case "F64", 8:
            return struct.unpack("<d", data)[0]
        case "F16", 2:
            return struct.unpack("<e", data)[0]
        case "BF16", 2:
            return struct.unpack("<f", b"\0\0" + data)[0]
        case "I64", 8:
            return float(struct.unpack("<q", data)[0])
    raise ModelError("the alpha of a LoRA is not one number", where=header.path, found=keys.alpha)


def as_dict(found: LoraInspection) -> dict[str, Any]:
    """An inspection as JSON."""
    return {
        "what": "lora",
        "path": str(found.path),
        "family": found.family,
        "format": found.naming,
        "modules": dict(found.modules),
        "targets": dict(found.targets),
        "ranks": {str(rank): count for rank, count in found.ranks.items()},
        "scales": {f"{scale:g}": count for scale, count in found.scales.items()},
        "dtypes": dict(found.dtypes),
        "thumbnail": found.thumbnail,
        "metadata": dict(found.metadata),
        "provenance": dict(found.provenance),
    }

"""Bases in original files: one that holds everything, or parts put together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from eridiff.errors import ModelError
from eridiff.families.checkpoints import folder, recognise
from eridiff.families.checkpoints.component import Component
from eridiff.families.checkpoints.layout import CheckpointLayout, Kind
from eridiff.families.checkpoints.tensorfile import Header, read_header


def from_file(path: Path, layout: CheckpointLayout, configs: Path | None) -> dict[str, Component]:
    """The components in one original file.

    Args:
        path: a safetensors file.
        layout: the family's components.
        configs: folder where `<component>/config.json` may lie, for sizes that weights do not tell.

    Raises:
        ModelError: it is damaged, or its denoiser is not the family's.
    """
    header = read_header(path)
    found = {name: recognise.prefix_of(header, spec) for name, spec in layout.models.items()}
    if found[layout.denoiser] is None:
        _refuse(header, layout)
    return {
        name: _component(name, path, prefix, configs) for name, prefix in found.items() if prefix is not None
    }


def from_parts(
    parts: Mapping[Kind, Path], layout: CheckpointLayout, *, variant: str | None, configs: Path | None
) -> dict[str, Component]:
    """The components of a base put together from files and folders.

    What is not given may lie in the denoiser's own file or folder.

    Args:
        parts: kind of component to safetensors file, component folder, or whole base.
        layout: the family's components.
        variant: of the weights in folders.
        configs: folder where `<component>/config.json` may lie.

    Raises:
        ModelError: a part is missing, or is something else than it should be.
    """
    foreign = [kind for kind in parts if layout.component(kind) is None]
    if foreign:
        raise ModelError(
            f"{layout.family} has no such part",
            where="model.base",
            found=", ".join(foreign),
            wanted=", ".join(spec.kind for spec in layout.models.values()),
        )
    found = whole(parts["transformer"], layout, variant=variant, configs=configs)
    for kind, path in parts.items():
        name = layout.component(kind)
        assert name is not None
        if kind != "transformer" or name not in found:
            found[name] = _part(path, name, layout, variant=variant, configs=configs)
    return found


def whole(
    path: Path, layout: CheckpointLayout, *, variant: str | None, configs: Path | None
) -> dict[str, Component]:
    """All components in a file or a diffusers folder; none if the folder is a single component's.

    Raises:
        ModelError: there is no such file, or it is of another family.
    """
    if path.is_dir():
        if (path / "config.json").is_file() and not (path / "model_index.json").is_file():
            return {}
        return folder.components(path, layout, variant=variant)
    return from_file(path, layout, configs)


def _part(
    path: Path, name: str, layout: CheckpointLayout, *, variant: str | None, configs: Path | None
) -> Component:
    """One component from its own file or folder, or from a base that holds it."""
    if path.is_dir():
        inside = path if (path / "config.json").is_file() else path / name
        if not folder.has_weights(inside):
            raise ModelError(
                f"a folder holds no {name}", where=path, wanted="config.json and a safetensors file"
            )
        return folder.model_component(inside, name, variant=variant)
    header = read_header(path)
    prefix = recognise.prefix_of(header, layout.models[name])
    if prefix is None:
        held = ", ".join(found.kind for found in recognise.components(header)) or "nothing known"
        raise ModelError(
            f"this file holds no {layout.models[name].kind} of {layout.family}", where=path, found=held
        )
    return _component(name, path, prefix, configs)


def _component(name: str, path: Path, prefix: str, configs: Path | None) -> Component:
    config = configs / name / "config.json" if configs is not None else None
    return Component(name, path, (path,), config if config is not None and config.is_file() else None, prefix)


def _refuse(header: Header, layout: CheckpointLayout) -> None:
    other = recognise.other_denoiser(header, layout)
    held = ", ".join(found.kind for found in recognise.components(header))
    raise ModelError(
        f"this file holds no denoiser of {layout.family}",
        where=header.path,
        found=other or held or "nothing known",
        wanted=layout.models[layout.denoiser].class_name,
        fix="set model.family to the file's, or model.base to another file",
    )

"""Bases in diffusers' layout: a folder a component, with `model_index.json` beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eridiff.errors import ModelError
from eridiff.families.checkpoints.component import Component
from eridiff.families.checkpoints.layout import CheckpointLayout

WEIGHTS = ("diffusion_pytorch_model", "model")
"""What files of weights are called, without their endings."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def components(root: Path, layout: CheckpointLayout, *, variant: str | None) -> dict[str, Component]:
    """The components that a diffusers folder holds.

    Raises:
        ModelError: the folder is of another family, or holds no base at all.
    """
    _check_family(root, layout)
    models = {
        name: model_component(root / name, name, variant=variant)
        for name in layout.models
        if has_weights(root / name)
    }
    tokenizers = {
        name: tokenizer_component(root / name, name) for name in layout.tokenizers if (root / name).is_dir()
    }
    config = root / "scheduler" / "scheduler_config.json"
    scheduler = (
        {"scheduler": Component("scheduler", config.parent, config=config)} if config.is_file() else {}
    )
    return models | tokenizers | scheduler


def has_weights(path: Path) -> bool:
    """Whether a folder is a component's, with weights in it."""
    return (path / "config.json").is_file() and any(
        ".safetensors" in file.name or file.suffix in _PICKLES for file in path.iterdir()
    )


def model_component(path: Path, name: str, *, variant: str | None) -> Component:
    """A component with weights in a folder of its own.

    Raises:
        ModelError: it has no safetensors file of that variant, or lacks some of its shards.
    """
    middle = f".{variant}" if variant else ""
    for stem in WEIGHTS:
        single = path / f"{stem}{middle}.safetensors"
        if single.is_file():
            return Component(name, path, (single,), path / "config.json")
        # Both ways of writing a variant's index have been in use.
        for index in (
            path / f"{stem}.safetensors.index{middle}.json",
            path / f"{stem}{middle}.safetensors.index.json",
        ):
            if index.is_file():
                return Component(name, path, _shards(index), path / "config.json")
    found = sorted(file.name for file in path.iterdir() if file.suffix in (".safetensors", *_PICKLES))
    pickled = bool(found) and all(Path(file).suffix in _PICKLES for file in found)
    raise ModelError(
        f"{name} has no {'safetensors file' if not variant else f'weights of variant {variant!r}'}",
        where=path,
        found=", ".join(found) or "nothing",
        wanted=f"{WEIGHTS[0]}{middle}.safetensors or {WEIGHTS[1]}{middle}.safetensors",
        fix="convert it to safetensors: pickles can run code and are not opened"
        if pickled
        else "set model.variant",
    )


def tokenizer_component(path: Path, name: str) -> Component:
    """A tokenizer's folder."""
    return Component(name, path, extra=tuple(sorted(file for file in path.iterdir() if file.is_file())))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping.

    Raises:
        ModelError: the file is missing or no JSON mapping.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("a model's configuration cannot be read", where=path, found=error) from error
    if not isinstance(fields, dict):
        raise ModelError("a model's configuration is not a mapping", where=path)
    return fields


def class_name(config: Path) -> str | None:
    """The class that a configuration names, or none.

    Raises:
        ModelError: the file is no configuration.
    """
    fields = read_json(config)
    return fields.get("_class_name") or next(iter(fields.get("architectures") or ()), None)


def _shards(index: Path) -> tuple[Path, ...]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError("an index of weights is damaged", where=index)
    paths = tuple(index.parent / name for name in sorted(set(names.values())))
    for path in paths:
        if path.parent != index.parent or not path.is_file():
            raise ModelError("a shard of the weights is missing", where=index, wanted=path.name)
    return paths


def _check_family(root: Path, layout: CheckpointLayout) -> None:
    """Judge by the pipeline that the folder names, and by the denoiser's class."""
    if (root / "model_index.json").is_file():
        pipeline = read_json(root / "model_index.json").get("_class_name")
        if pipeline not in layout.pipelines:
            raise _other_family(root, layout, pipeline, layout.pipelines[0])
    config = root / layout.denoiser / "config.json"
    if config.is_file():
        found = read_json(config).get("_class_name")
        if found != layout.models[layout.denoiser].class_name:
            raise _other_family(root, layout, found, layout.models[layout.denoiser].class_name)
    elif not (root / "model_index.json").is_file():
        raise ModelError(
            "a folder is no diffusers base",
            where=root,
            wanted=f"model_index.json, {layout.denoiser}/config.json, ...",
        )


def _other_family(root: Path, layout: CheckpointLayout, found: object, wanted: str) -> ModelError:
    return ModelError(
        f"the base is not of the family {layout.family}",
        where=root,
        found=found,
        wanted=wanted,
        fix="set model.family to the base's, or model.base to another",
    )

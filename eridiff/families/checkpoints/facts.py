"""Configurations: the component's own `config.json`, else this package's, with widths from the shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eridiff.errors import ModelError
from eridiff.families.checkpoints.component import Component
from eridiff.families.checkpoints.folder import class_name, read_json
from eridiff.families.checkpoints.keys import Shape
from eridiff.families.checkpoints.layout import ModelSpec

_CONFIGS = Path(__file__).parent / "configs"


def fact(name: str) -> dict[str, Any]:
    """A configuration shipped with the package."""
    return json.loads((_CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def configuration(component: Component, spec: ModelSpec, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The configuration of a component.

    Args:
        component: its files.
        spec: what it is.
        shapes: shapes of its tensors under the class's own names.

    Raises:
        ModelError: the files are for another class, or the shapes belong to no such model.
    """
    if component.config is None:
        return spec.configure(fact(spec.facts), shapes)
    config, named = read_json(component.config), class_name(component.config)
    if named is not None and named not in spec.class_names:
        raise ModelError(
            f"{component.name} is another kind of model",
            where=component.config,
            found=named,
            wanted=" or ".join(spec.class_names),
        )
    return config

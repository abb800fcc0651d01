"""Where each component of a recipe's base lies. Nothing is loaded and torch is not needed.

A component that is missing is an error only for the stage that asks for it: training works when the text
encoders and the VAE are gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eridiff.errors import ModelError
from eridiff.families.checkpoints import folder
from eridiff.families.checkpoints.component import Component
from eridiff.families.checkpoints.layout import CheckpointLayout

if TYPE_CHECKING:
    from eridiff.families.base import ModelFamily
    from eridiff.recipe import Model

_BUILTIN = "builtin:demo-"


@dataclass(frozen=True)
class Base:
    """A base model on disk.

    Attributes:
        source: what the recipe says, for messages and provenance.
        layout: the family's components.
        components: those that were found, by their folder name in diffusers.
        revision: commit of a hub id.
    """

    source: str
    layout: CheckpointLayout
    components: Mapping[str, Component]
    revision: str | None = None

    def component(self, name: str) -> Component:
        """Where a component lies.

        Raises:
            ModelError: the base lacks it.
        """
        self.layout.refuse_unknown(name)
        if name not in self.components:
            raise ModelError(
                f"the base has no {name}",
                where=self.source,
                found=", ".join(sorted(self.components)) or "nothing",
                fix="give the missing part in model.base, or a base that holds it",
            )
        return self.components[name]

    def files(self, name: str) -> tuple[Path, ...]:
        """The files that decide what a component computes, sorted.

        Raises:
            ModelError: the base lacks it.
        """
        return self.component(name).files


def resolve(model: Model, family: ModelFamily) -> Base:
    """The base of a recipe's `model` section.

    Raises:
        ModelError: there is no such base, or it is of another family.
    """
    if not isinstance(model.base, str):
        raise ModelError("model.base as parts is not read yet", where="model.base")
    if model.base.startswith(_BUILTIN):
        root = _builtin_folder(model.base)
    else:
        root = Path(model.base).expanduser()
    if not root.is_dir():
        raise ModelError(
            "there is no such base model",
            where="model.base",
            found=model.base,
            wanted="a diffusers folder, a safetensors file, a hub id, parts, or builtin:demo-<family>",
        )
    return Base(
        model.base, family.checkpoint, folder.components(root, family.checkpoint, variant=model.variant)
    )


def _builtin_folder(name: str) -> Path:
    import eridiff

    root = Path(eridiff.__file__).parent / "demo" / "bases"
    found = root / name.removeprefix(_BUILTIN)
    if not found.is_dir():
        have = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        raise ModelError(
            "there is no such built-in base",
            where="model.base",
            found=name,
            wanted=", ".join(f"{_BUILTIN}{family}" for family in have) or None,
        )
    return found

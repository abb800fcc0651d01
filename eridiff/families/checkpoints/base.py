"""Where each component of a recipe's base lies. Nothing is loaded and torch is not needed.

A component that is missing is an error only for the stage that asks for it: training works when the text
encoders and the VAE are gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from eridiff.errors import ModelError
from eridiff.families.checkpoints import fitting, hub, original, vocabularies
from eridiff.families.checkpoints.component import Component
from eridiff.families.checkpoints.facts import configuration
from eridiff.families.checkpoints.layout import KINDS, CheckpointLayout, Kind

if TYPE_CHECKING:
    from eridiff.families.base import ModelFamily
    from eridiff.recipe import Model

_BUILTIN = "builtin:demo-"
_PARTS = "give the missing part in model.base, or a base that holds it"
_TOKENIZERS = "set model.tokenizers to a folder with the tokenizers, in clip/ and t5/"


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
                fix=_TOKENIZERS if name in self.layout.tokenizers else _PARTS,
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
    layout, configs = family.checkpoint, model.tokenizers
    if not isinstance(model.base, str):
        given: dict[Kind, Path] = {
            kind: path for kind in KINDS if (path := getattr(model.base, kind)) is not None
        }
        found = original.from_parts(given, layout, variant=model.variant, configs=configs)
        return _checked(Base(_described(given), layout, found), configs)
    path, revision = _located(model.base, model, layout)
    found = original.whole(path, layout, variant=model.variant, configs=configs)
    return _checked(Base(model.base, layout, found, revision), configs)


def _located(name: str, model: Model, layout: CheckpointLayout) -> tuple[Path, str | None]:
    """A base's file or folder, and its commit if it is from the hub."""
    if name.startswith(_BUILTIN):
        return _builtin_folder(name), None
    path = Path(name).expanduser()
    if path.exists():
        return path, None
    if hub.is_id(name):
        folder = hub.snapshot(name, layout, revision=model.revision, variant=model.variant)
        return folder, folder.name
    raise ModelError(
        "there is no such base model",
        where="model.base",
        found=name,
        wanted="a diffusers folder, a safetensors file, a hub id, parts, or builtin:demo-<family>",
    )


def _checked(base: Base, tokenizers: Path | None) -> Base:
    """The base with tokenizers, its denoiser being of a variant that is trained here."""
    denoiser = base.components.get(base.layout.denoiser)
    if denoiser is not None:
        found = variant_of(denoiser, base.layout)
        if found not in base.layout.trained:
            raise ModelError(
                f"this variant of {base.layout.family} is not trained here",
                where=denoiser.path,
                found=found,
                wanted=" or ".join(base.layout.trained),
            )
    return _with_tokenizers(base, tokenizers)


def variant_of(denoiser: Component, layout: CheckpointLayout) -> str:
    """The variant of a denoiser, by its configuration, which its weights' shapes stand in for.

    Raises:
        ModelError: the files are damaged, or not the family's.
    """
    spec = layout.models[layout.denoiser]
    shapes = {} if denoiser.config is not None else fitting.shapes_of(spec, denoiser)
    return layout.variant(configuration(denoiser, spec, shapes))


def _with_tokenizers(base: Base, given: Path | None) -> Base:
    """The base with the tokenizers of the recipe's folder, else its own, else those that the machine has."""
    own = base.components
    if given is not None:
        return replace(base, components={**own, **vocabularies.in_folder(base.layout, given)})
    missing = [name for name in base.layout.tokenizers if name not in own]
    return replace(base, components={**own, **vocabularies.in_cache(base.layout, missing)})


def _described(parts: Mapping[Kind, Path]) -> str:
    return ", ".join(f"{kind}: {path}" for kind, path in parts.items())


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

"""Spaces: which stored latents and embeddings a recipe means. Nothing here loads torch.

A space is named by the digest of all that decides an encoding except the item: the encoders' weights, the
transform and its version, the precision. So recipes with equal encoders share what they made, and a changed
encoder can never be served a stale tensor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eridiff import families
from eridiff.errors import ModelError
from eridiff.families.base import ModelFamily, Precision
from eridiff.families.checkpoints.base import Base, resolve
from eridiff.images.decode import PIXEL_RULES
from eridiff.recipe import Recipe
from eridiff.store.files import FileDigests, digest_json, read_json, write_json
from eridiff.store.parts import TensorStore
from eridiff.store.paths import AnyPath, path_at
from eridiff.store.workspace import Workspace

logger = logging.getLogger(__name__)

Kind = Literal["latents", "text"]
_LENGTH = 32
_MIRRORING = "after the crop"
_WEIGHTS = "weights"
_FIX_NOTE = "delete this file, and run precompute once while the encoders are there"


@dataclass(frozen=True)
class Space:
    """A space and where it lies.

    Attributes:
        kind: what is in it.
        root: the folder of all spaces of that kind.
        description: what its digest is made of, JSON-able.
    """

    kind: Kind
    root: AnyPath
    description: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Its name."""
        return digest_json(self.description)[:_LENGTH]

    def store(self) -> TensorStore:
        """The store of its items."""
        return TensorStore(self.root, self.digest)


def workspace(recipe: Recipe) -> Workspace:
    """Where everything of a recipe lies.

    Raises:
        RecipeError: nothing installed reaches its storage.
    """
    storage = recipe.storage
    data = path_at(
        storage.data,
        cache=storage.cache,
        max_bytes=int(storage.cache_gb * 1e9),
        options=storage.options,
    )
    return Workspace(data, storage.runs, storage.cache)


def family_of(recipe: Recipe) -> ModelFamily:
    """The recipe's family, with its options."""
    return families.get(recipe.model.family, recipe.model.options)


def base_of(recipe: Recipe) -> Base:
    """The files of the recipe's base.

    Raises:
        ModelError: there is no such base, or it is of another family.
    """
    return resolve(recipe.model, family_of(recipe))


def vae_dtype(recipe: Recipe) -> Precision:
    """In what precision the recipe's images are encoded."""
    return recipe.precompute.vae_dtype or family_of(recipe).vae_dtype


def latent_space(recipe: Recipe) -> Space:
    """The space of the recipe's latents.

    Raises:
        ModelError: the base has no VAE, and no latents were ever made with it.
    """
    family = family_of(recipe)
    made_how = {
        **family.latent_recipe(),
        "pixels": PIXEL_RULES,
        "mirroring": _MIRRORING,
        "vae_dtype": vae_dtype(recipe),
        "tile_above_px": recipe.precompute.tile_above_px,
    }
    return _space(recipe, "latents", family.parts.vae, made_how)


def text_space(recipe: Recipe) -> Space:
    """The space of the recipe's prompt embeddings.

    Raises:
        ModelError: the base lacks a text encoder or tokenizer, and no embeddings were ever made with it.
    """
    family = family_of(recipe)
    made_how = {**family.text_recipe(), "dtype": recipe.precompute.text_dtype}
    return _space(recipe, "text", family.parts.text, made_how)


def remember(recipe: Recipe, space: Space) -> None:
    """Notes which space the recipe means, so that training goes on when the encoders' files are deleted."""
    note = _note(recipe, space.kind, {k: v for k, v in space.description.items() if k != _WEIGHTS})
    if not note.exists() or read_json(note, fix=_FIX_NOTE) != space.description:
        write_json(note, dict(space.description))


def remembered(data: AnyPath) -> frozenset[str]:
    """Digests of all spaces that recipes mean, as `remember` noted them below a `data` folder."""
    notes = (data / "spaces").glob("*.json")
    return frozenset(digest_json(read_json(note, fix=_FIX_NOTE))[:_LENGTH] for note in notes)


def what_changed(space: Space) -> tuple[str, ...]:
    """What distinguishes a space from the stored one most like it; nothing where there is no other."""
    others = [
        read_json(path, fix="delete this file: precompute writes it again")
        for path in sorted(space.root.glob("*/space.json"))
        if path.parent.name != space.digest
    ]
    changes = [
        tuple(sorted(k for k in {*other, *space.description} if other.get(k) != space.description.get(k)))
        for other in others
    ]
    return min(changes, key=len, default=())


def _space(recipe: Recipe, kind: Kind, components: tuple[str, ...], made_how: Mapping[str, Any]) -> Space:
    places = workspace(recipe)
    root = places.latents if kind == "latents" else places.text
    try:
        weights = _digests(base_of(recipe), components, FileDigests(places.digests).digest)
    except ModelError as error:
        note = _note(recipe, kind, made_how)
        if not note.exists():
            raise
        logger.info("%s The %s made with it earlier are used.", error.what, kind)
        return Space(kind, root, read_json(note, fix=_FIX_NOTE))
    return Space(kind, root, {**made_how, _WEIGHTS: weights})


def _digests(base: Base, components: tuple[str, ...], digest: Callable[[Path], str]) -> dict[str, list[str]]:
    """Digests of the files of each component; their names and places do not count."""
    return {name: sorted(digest(path) for path in base.files(name)) for name in components}


def _note(recipe: Recipe, kind: Kind, made_how: Mapping[str, Any]) -> AnyPath:
    base = recipe.model.model_dump(mode="json", exclude={"options", "quantize"})
    name = digest_json({"kind": kind, "base": base, "made_how": dict(made_how)})[:_LENGTH]
    return workspace(recipe).data / "spaces" / f"{name}.json"

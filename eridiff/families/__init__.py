"""The image models that can be fine-tuned. A further one is a file here and a line in the registry."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from eridiff.errors import RecipeError
from eridiff.families.base import FamilyOptions, ModelFamily
from eridiff.families.flux import Flux, FluxOptions
from eridiff.families.profiles import Profile, ProfileName
from eridiff.families.sd35 import Sd35, Sd35Options
from eridiff.families.sdxl import Sdxl, SdxlOptions

_FAMILIES = {"sdxl": (Sdxl, SdxlOptions), "sd35": (Sd35, Sd35Options), "flux": (Flux, FluxOptions)}


def names() -> tuple[str, ...]:
    """Names of all families."""
    return tuple(_FAMILIES)


def option_models() -> dict[str, type[FamilyOptions]]:
    """The model of `model.options` for each family's name."""
    return {name: options for name, (_, options) in _FAMILIES.items()}


def profile(name: str, options: Mapping[str, Any], card: ProfileName) -> Profile:
    """What fits training of a family with these options into a card of that size.

    Raises:
        RecipeError: no such family, or options that it does not have.
    """
    return get(name, options).profiles[card]


def get(name: str, options: Mapping[str, Any] | None = None) -> ModelFamily:
    """The family of that name, carrying its options.

    Args:
        name: one of `names()`.
        options: the recipe's `model.options`; what is left out takes its default.

    Raises:
        RecipeError: no such family, or options that it does not have.
    """
    if name not in _FAMILIES:
        near = difflib.get_close_matches(name, _FAMILIES, n=1)
        raise RecipeError(
            "There is no such model family.",
            where="model.family",
            found=name,
            wanted=", ".join(_FAMILIES),
            fix=f"did you mean {near[0]!r}?" if near else None,
        )
    family, model = _FAMILIES[name]
    try:
        return family(model.model_validate(dict(options or {})))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(("model.options", *map(str, first["loc"])))
        raise RecipeError(
            f"{name} cannot take this option.", where=where, found=first["input"], wanted=first["msg"]
        ) from error


__all__ = ["FamilyOptions", "ModelFamily", "get", "names", "option_models", "profile"]

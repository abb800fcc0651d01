"""What a deployment lets one change: a recipe in which every key may be left out.

Prefect checks parameters against a flow's schema before it creates a run, and draws a form from it. With this
model as a parameter's type a misspelt key or a text for a number is refused there and then.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import Field, create_model

from eridiff.recipe import Recipe
from eridiff.recipe.fields import Section

AnySection = TypeVar("AnySection", bound=Section)


@cache
def partial(model: type[Section]) -> type[Section]:
    """The model with no key required; sections inside it likewise, lists as they are."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            kind = partial(kind)
        constrained = Annotated[kind, *field.metadata] if field.metadata else kind
        fields[name] = (
            constrained,
            Field(default=None, description=field.description, json_schema_extra=_without_default),
        )
    return create_model(f"{model.__name__}Overrides", __base__=Section, __doc__=model.__doc__, **fields)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


class RecipeOverrides(partial(Recipe)):
    """Sections and keys of a recipe to change, as `{"train": {"steps": 500}}`."""


NO_OVERRIDES = RecipeOverrides()


def as_settings(overrides: Section | dict[str, Any] | None) -> dict[str, Any]:
    """Overrides as plain values, only the keys that were given, for `pipeline.load_recipe`."""
    if isinstance(overrides, Section):
        return overrides.model_dump(mode="json", exclude_unset=True)
    return dict(overrides or {})

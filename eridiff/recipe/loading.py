"""YAML in, a frozen recipe out; every error says file, line and key."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from eridiff.errors import RecipeError
from eridiff.recipe.recipe import Recipe

Location = tuple[str | int, ...]
Lines = dict[Location, int]
Overrides = Sequence[str] | Mapping[str, Any]
Profiles = Callable[[str, Mapping[str, Any], Any], Mapping[str, Mapping[str, Any]]]
"""A family's name, its options and a profile's name to the profile: section to keys and values."""
Validated = TypeVar("Validated", bound=BaseModel)

_OTHER_TRAINERS = {
    "rank": "linear",
    "network_dim": "linear",
    "alpha": "linear_alpha",
    "network_alpha": "linear_alpha",
    "learning_rate": "lr",
    "max_train_steps": "steps",
    "train_batch_size": "batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
    "name_or_path": "base",
    "pretrained_model_name_or_path": "base",
    "qtype": "quantize",
    "layer_offloading": "offload",
    "blocks_to_swap": "offload",
    "low_vram": "offload",
    "fsdp": "shard_base",
    "fsdp_enable": "shard_base",
    "deepspeed": "shard_base",
    "caption_dropout": "caption_dropout_rate",
    "image_dir": "folder_path",
    "walk_seed": "seeds",
    "seed": "seeds",
    "negative_prompt": "neg",
}
"""What other trainers call our keys, for the hint only."""
_BRANCHES = ("str", "constrained-str", "int", "float", "BaseParts")
"""What pydantic calls the branches of a union, in the places of its errors."""


def load(
    path: Path,
    *,
    overrides: Overrides = (),
    option_models: Mapping[str, type[BaseModel]],
    profile: Profiles | None = None,
) -> Recipe:
    """The recipe in a YAML file.

    Args:
        path: the YAML file.
        overrides: `["train.steps=500", ...]` with values in YAML, or `{"train.steps": 500, ...}`; a nested
            mapping is merged key by key.
        option_models: the model of `model.options` for each family's name.
        profile: what a family with some options sets for the recipe's `profile`; a recipe that names one
            cannot be read without.

    Raises:
        RecipeError: the file is missing, not YAML, or says something that a recipe cannot say; each fault is
            named with its line and key.
    """
    data, lines = _read(path)
    for key, value in _assignments(overrides):
        _assign(data, key, value)
    _refuse_unknown_family(path, data, lines, tuple(option_models))
    recipe = _validated(Recipe, data, path, lines, ())
    options = _validated(
        option_models[recipe.model.family], recipe.model.options, path, lines, ("model", "options")
    )
    if recipe.profile is not None:
        if profile is None:
            raise ValueError("the recipe names a profile, and no profiles were given")
        _fill(data, profile(recipe.model.family, recipe.model.options, recipe.profile))
        recipe = _validated(Recipe, data, path, lines, ())
    model = recipe.model.model_copy(update={"options": options.model_dump(mode="json")})
    return recipe.model_copy(update={"model": model})


def _fill(data: dict[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> None:
    """Gives sections those keys that they lack."""
    for section, keys in defaults.items():
        data[section] = {**keys, **(data.get(section) or {})}


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every default written out."""
    text = io.StringIO()
    writer = YAML()
    writer.width = 120
    writer.dump(recipe.model_dump(mode="json"), text)
    return text.getvalue()


def schema(option_models: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """JSON Schema of a recipe, with each family's options, for editors that complete YAML."""
    whole = Recipe.model_json_schema()
    definitions = whole["$defs"]
    definitions["Model"]["properties"]["family"] |= {"enum": sorted(option_models)}
    branches = []
    for family, model in sorted(option_models.items()):
        options = model.model_json_schema(ref_template=f"#/$defs/{family}.{{model}}")
        definitions |= {f"{family}.{name}": part for name, part in options.pop("$defs", {}).items()}
        definitions[f"{family}.options"] = options
        then = {"properties": {"options": {"$ref": f"#/$defs/{family}.options"}}}
        branches.append({"if": {"properties": {"family": {"const": family}}}, "then": then})
    definitions["Model"]["allOf"] = branches
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}


def _read(path: Path) -> tuple[dict[str, Any], Lines]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            "There is no such recipe.", where=path, fix="give the path of a YAML file, e.g. configs/sdxl.yaml"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            "The recipe cannot be read.", where=path, found=error, wanted="UTF-8 text"
        ) from error
    try:
        tree = YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        found = (error.problem or "").replace("\n", " ")
        raise RecipeError(
            "A key is given twice.", where=_where(path, error), found=found, wanted="each key once"
        ) from error
    except YAMLError as error:
        found = getattr(error, "problem", None) or error
        raise RecipeError("The recipe is not valid YAML.", where=_where(path, error), found=found) from error
    if not isinstance(tree, CommentedMap):
        raise RecipeError(
            "The recipe is empty or not a mapping.", where=path, wanted="name:, model:, datasets:"
        )
    lines: Lines = {}
    return _plain(tree, (), lines), lines


def _where(path: Path, error: YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    return f"{path}, line {mark.line + 1}" if mark else str(path)


def _plain(node: Any, at: Location, lines: Lines) -> Any:
    """The tree as plain dicts, lists and numbers; notes the line of every key on the way."""
    if isinstance(node, CommentedMap):
        for key, (line, *_) in (node.lc.data or {}).items():
            lines[*at, key] = line + 1
        return {str(key): _plain(value, (*at, str(key)), lines) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        for index, (line, *_) in (node.lc.data or {}).items():
            lines[*at, index] = line + 1
        return [_plain(value, (*at, index), lines) for index, value in enumerate(node)]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return None if node is None else str(node)


def _assignments(overrides: Overrides) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        return list(overrides.items())
    pairs = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError("An override has no value.", found=text, wanted="key=value, as train.steps=500")
        try:
            pairs.append((key.strip(), _plain(YAML(typ="rt").load(value), (), {})))
        except YAMLError as error:
            raise RecipeError("An override is not valid YAML.", found=text) from error
    return pairs


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key; a mapping is merged into the mapping that is there."""
    *path, last = key.split(".")
    node: Any = data
    for step in path:
        node = _child(node, step, key)
    place: Any = _index(node, last, key) if isinstance(node, list) else last
    if not isinstance(node, dict | list):
        raise RecipeError("An override leads into a plain value.", found=key, wanted="the key of a section")
    there = node[place] if isinstance(node, list) else node.get(place)
    if isinstance(value, Mapping) and isinstance(there, dict):
        for name, inner in value.items():
            _assign(data, f"{key}.{name}", inner)
    else:
        node[place] = value


def _child(node: Any, step: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, step, key)]
    if isinstance(node, dict):
        if node.get(step) is None:
            node[step] = {}
        return node[step]
    raise RecipeError("An override leads into a plain value.", found=key, wanted="the key of a section")


def _index(node: list[Any], step: str, key: str) -> int:
    if not step.isdigit() or int(step) >= len(node):
        raise RecipeError(
            "An override names an entry that the list does not have.",
            found=key,
            wanted=f"a number from 0 to {len(node) - 1}",
        )
    return int(step)


def _refuse_unknown_family(path: Path, data: dict[str, Any], lines: Lines, names: Sequence[str]) -> None:
    model = data.get("model")
    family = model.get("family") if isinstance(model, dict) else None
    if isinstance(family, str) and family not in names:
        raise RecipeError(
            "There is no such model family.",
            where=_place(path, lines, ("model", "family")),
            found=family,
            wanted=", ".join(names),
            fix=_nearest(family, names),
        )


def _validated(
    model: type[Validated], data: dict[str, Any], path: Path, lines: Lines, prefix: Location
) -> Validated:
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        faults = _without_union_noise(error.errors(include_url=False))
        first, *others = [_fault(model, fault, path, lines, prefix) for fault in faults]
        if others:
            first.fix = "\n".join(
                [first.fix or "see above", *(f"and: {_one_line(other)}" for other in others)]
            )
        raise first from None


def _without_union_noise(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """One error a place, the deepest: pydantic reports each branch of a union."""
    seen: dict[Location, ErrorDetails] = {}
    for error in errors:
        place = tuple(part for part in error["loc"] if not _is_branch(part))
        seen.setdefault(place, {**error, "loc": place})
    return [e for at, e in seen.items() if not any(at == other[: len(at)] != other for other in seen)]


def _is_branch(part: str | int) -> bool:
    return isinstance(part, str) and (part in _BRANCHES or "[" in part)


def _fault(
    model: type[BaseModel], error: ErrorDetails, path: Path, lines: Lines, prefix: Location
) -> RecipeError:
    place: Location = (*prefix, *error["loc"])
    key = ".".join(map(str, place))
    where = _place(path, lines, place)
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, error["loc"][:-1])
        return RecipeError(
            f"Unknown key {key!r}.",
            where=where,
            wanted="one of: " + ", ".join(sorted(known)),
            fix=_nearest(str(place[-1]), known),
        )
    if error["type"] == "missing":
        return RecipeError(f"The key {key!r} is missing.", where=where, fix=f"add {key}")
    found = None if error["type"] == "secret" else repr(error["input"])
    return RecipeError(f"{key!r} cannot be this.", where=where, found=found, wanted=error["msg"])


def _one_line(error: RecipeError) -> str:
    parts = (error.what, error.where and f"({error.where})", error.fix)
    return " ".join(str(part) for part in parts if part)


def _place(path: Path, lines: Lines, place: Location) -> str:
    for end in range(len(place), 0, -1):
        if place[:end] in lines:
            return f"{path}, line {lines[place[:end]]}, key {'.'.join(map(str, place))}"
    return f"{path}, key {'.'.join(map(str, place))}"


def _nearest(name: str, known: Sequence[str]) -> str | None:
    alias = _OTHER_TRAINERS.get(name)
    near = [alias] if alias in known else difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else None


def _known_keys(model: type[BaseModel], place: Location) -> tuple[str, ...]:
    for part in place:
        if isinstance(part, int):
            continue
        model = _inner_model(model.model_fields[part].annotation) or model
    return tuple(model.model_fields)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _inner_model(inner))), None)

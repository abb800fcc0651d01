"""Profiles: defaults for cards of a size, which a recipe's own keys override."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_bases import BASES
from eridiff import families, recipe
from eridiff.demo.architecture import build_denoiser_on_meta
from eridiff.errors import RecipeError
from eridiff.families.activations import Workload
from eridiff.families.profiles import PROFILES
from eridiff.recipe import Recipe
from eridiff.training.footprint import CONTEXT_BYTES, footprint
from stages.pipeline import load_recipe

GIB = 2**30


def written(folder: Path, family: str = "flux", **sections: Any) -> Path:
    path = folder / "recipe.yaml"
    whole = {"name": "a", "datasets": [{"folder_path": "images"}], **sections}
    whole["model"] = {"family": family, "base": "base", **sections.get("model", {})}
    path.write_text(json.dumps(whole))
    return path


def test_the_recipe_names_the_profiles_that_families_have() -> None:
    branches = Recipe.model_json_schema()["properties"]["profile"]["anyOf"]
    assert tuple(branches[0]["enum"]) == PROFILES
    assert all(tuple(families.get(name).profiles) == PROFILES for name in families.names())


def test_a_profile_is_a_set_of_defaults(tmp_path: Path) -> None:
    found = load_recipe(written(tmp_path, profile="8gb"))
    assert (found.model.quantize, found.train.offload) == ("int8", 0.75)
    assert (found.train.optimizer, found.train.gradient_checkpointing) == ("adamw8bit", True)
    assert found.train.lr == Recipe.model_fields["train"].default.lr


def test_keys_of_the_recipe_and_of_the_command_line_count_before_it(tmp_path: Path) -> None:
    path = written(tmp_path, profile="8gb", model={"quantize": "none"}, train={"offload": 1.0})
    found = load_recipe(path, ["train.optimizer=adamw"])
    assert (found.model.quantize, found.train.offload, found.train.optimizer) == ("none", 1.0, "adamw")
    assert load_recipe(path, ["profile=16gb"]).train.optimizer == "adamw"


def test_a_profile_that_contradicts_the_recipe_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, profile="24gb", network={"init": "pissa_niter_16"})
    with pytest.raises(RecipeError, match="network") as caught:
        load_recipe(path)
    assert "a profile, keeps the base in int8" in str(caught.value)
    assert load_recipe(path, ["model.quantize=none"]).network.starts_from_weights


def test_what_is_shown_reads_back_the_same(tmp_path: Path) -> None:
    found = load_recipe(written(tmp_path, profile="12gb"))
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.dump(found))
    assert "profile: 12gb" in path.read_text()
    assert load_recipe(path) == found


def test_medium_and_large_have_profiles_of_their_own(tmp_path: Path) -> None:
    large = load_recipe(written(tmp_path, "sd35", profile="12gb"))
    medium = load_recipe(written(tmp_path, "sd35", profile="12gb", model={"options": {"variant": "medium"}}))
    assert (large.model.quantize, medium.model.quantize) == ("int8", "none")


@pytest.mark.parametrize("card", PROFILES)
@pytest.mark.parametrize("base", BASES)
def test_at_published_sizes_each_leaves_a_tenth_of_its_card(base: str, card: str, tmp_path: Path) -> None:
    name, size = BASES[base]
    model = {"options": {"variant": base.removeprefix("sd35-")}} if name == "sd35" else {}
    chosen = load_recipe(written(tmp_path, name, profile=card, model=model))
    shapes = {
        key: tuple(weight.shape) for key, weight in build_denoiser_on_meta(name, size).named_parameters()
    }
    predicted = footprint(
        chosen,
        families.get(name, chosen.model.options),
        shapes,
        Workload(1, 128, 128),
        checkpointed=chosen.train.gradient_checkpointing is True,
    )
    assert predicted.total + CONTEXT_BYTES <= 0.9 * int(card.removesuffix("gb")) * GIB, predicted

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eridiff import families
from eridiff.errors import RecipeError
from eridiff.recipe import Recipe, dump, load, schema

GOOD = """\
name: test
model:
  family: sd35
  base: some/where
datasets:
  - folder_path: images
train:
  lr: 1e-4
  steps: 10
"""


def read(folder: Path, text: str, overrides: object = ()) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load(path, overrides=overrides, option_models=families.option_models())


def test_numbers_are_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD).train.lr == 1e-4


def test_a_dumped_recipe_loads_as_itself(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD)
    assert read(tmp_path, dump(recipe)) == recipe


def test_recipes_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read(tmp_path, GOOD).train.steps = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        (["train.steps=500"], lambda recipe: recipe.train.steps == 500),
        (["train.lr=2e-5"], lambda recipe: recipe.train.lr == 2e-5),
        (["datasets.0.resolution=512"], lambda recipe: recipe.datasets[0].resolution == 512),
        (["sample.seeds=[1, 2]"], lambda recipe: recipe.sample.seeds == (1, 2)),
        (["model.options.t5_length=77"], lambda recipe: recipe.model.options["t5_length"] == 77),
        ({"train": {"steps": 7}}, lambda recipe: recipe.train.steps == 7 and recipe.train.lr == 1e-4),
        ({"train.steps": 7}, lambda recipe: recipe.train.steps == 7),
        (
            {"model.base": {"transformer": "a.safetensors"}},
            lambda recipe: recipe.model.base.transformer == Path("a.safetensors"),
        ),
    ],
)
def test_overrides_replace_one_key(tmp_path: Path, override: object, value: object) -> None:
    assert value(read(tmp_path, GOOD, override))


BAD = {
    "unknown key": (
        GOOD + "network:\n  linaer: 16\n",
        r"line 11, key network\.linaer.*did you mean 'linear'",
    ),
    "another trainer's key": (GOOD + "network:\n  rank: 16\n", r"did you mean 'linear'"),
    "unknown section": (GOOD + "trian: {}\n", r"line 10.*did you mean 'train'"),
    "key given twice": (GOOD + "train:\n  lr: 1\n", r"given twice.*line 10.*train"),
    "text for a number": (GOOD.replace("10", "ten"), r"line 9, key train\.steps.*'ten'.*valid integer"),
    "number for a text": (GOOD.replace("some/where", "3"), r"line 4, key model\.base"),
    "zero steps": (GOOD.replace("10", "0"), r"train\.steps.*greater than or equal to 1"),
    "infinite rate": (GOOD.replace("1e-4", ".inf"), r"train\.lr"),
    "negative rate": (GOOD.replace("1e-4", "-1e-4"), r"train\.lr.*greater than 0"),
    "missing name": (GOOD.replace("name: test\n", ""), r"'name' is missing"),
    "name with a slash": (GOOD.replace("test", "a/b"), r"key name"),
    "no datasets": (GOOD.replace("  - folder_path: images\n", "  []\n"), r"key datasets"),
    "dataset without a folder": (GOOD.replace("folder_path: images", "resolution: 512"), r"folder_path"),
    "unknown family": (GOOD.replace("sd35", "sd3"), r"line 3.*did you mean 'sd35'"),
    "unknown option": (
        GOOD.replace("base: some/where", "base: some/where\n  options: {t5_len: 1}"),
        r"model\.options\.t5_len.*did you mean 't5_length'",
    ),
    "DoRA": (GOOD + "network:\n  type: dora\n", r"line 11, key network\.type.*norm of W, training"),
    "LoKr": (GOOD + "network:\n  type: LoKr\n", r"network\.type.*diffusers loads none of them"),
    "another network": (GOOD + "network:\n  type: lorra\n", r"network\.type.*'lora'"),
    "PiSSA of convolutions": (GOOD + "network: {conv: 4, init: pissa}\n", r"network\.init.*network\.conv"),
    "PiSSA from a file": (
        GOOD + "network: {init: olora, init_from: a.safetensors}\n",
        r"network\.init_from.*network\.init starts from",
    ),
    "PiSSA from champions": (
        GOOD + "network: {init: pissa}\nretrain: {start_from: champion}\n",
        r"key retrain.*start_from: scratch",
    ),
    "PiSSA of a base in few bits": (
        GOOD.replace("some/where", "some/where\n  quantize: nf4") + "network: {init: pissa}\n",
        r"line 11, key network\n.*'pissa'.*init: kaiming.*in nf4.*model\.quantize: none",
    ),
    "an optimizer misspelt": (
        GOOD + "  optimizer: adamww\n",
        r"key train\.optimizer.*'adamww'.*one of adamw, .*import path",
    ),
    "no device": (GOOD + "device: foo\n", r"key device.*'foo'"),
    "PiSSA misspelt": (GOOD + "network: {init: pisa}\n", r"network\.init.*'pisa'.*pissa_niter"),
    "not YAML": ("name: [", r"not valid YAML.*line 1"),
    "empty": ("", r"empty or not a mapping"),
    "a list": ("- 1\n", r"empty or not a mapping"),
    "several faults": (GOOD + "network:\n  linaer: 1\n  alhpa: 2\n", r"linaer.*and:.*alhpa"),
    "parts without a denoiser": (
        GOOD.replace("some/where", "{vae: a.safetensors}"),
        r"model\.base\.transformer",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_every_fault_is_named_with_its_place(tmp_path: Path, fault: str) -> None:
    text, message = BAD[fault]
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text", ["train.steps", "=5", "name.x=5", "datasets.7.resolution=5", "train.steps=["]
)
def test_bad_overrides_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError):
        read(tmp_path, GOOD, [text])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load(tmp_path / "absent.yaml", option_models=families.option_models())


def test_schema_names_every_family_and_describes_keys() -> None:
    whole = schema(families.option_models())
    text = json.dumps(whole)
    assert set(families.names()) <= set(whole["$defs"]["Model"]["properties"]["family"]["enum"])
    assert "Rank of linear layers." in text

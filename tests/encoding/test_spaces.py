from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.encoding.spaces import latent_space, remember, text_space, what_changed
from eridiff.errors import ModelError
from eridiff.recipe import Recipe
from tests.encoding.world import recipe_for


@pytest.fixture(scope="module", params=families.names())
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    save_random_base(request.param, folder / "base")
    (folder / "family").write_text(request.param)
    return folder


def recipe(root: Path, **changes: Any) -> Recipe:
    return recipe_for(root, (root / "family").read_text(), **changes)


def digests(chosen: Recipe) -> tuple[str, str]:
    return latent_space(chosen).digest, text_space(chosen).digest


def test_training_settings_and_names_change_no_space(root: Path) -> None:
    before = digests(recipe(root))
    changed = recipe(
        root,
        name="other",
        trigger_word="x",
        train={"lr": 1, "steps": 3, "dtype": "fp32"},
        precompute={"latent_batch_size": 1, "text_batch_size": 1, "part_samples": 1},
        sample={"prompts": ["another"]},
    )
    assert digests(changed) == before


def test_a_copy_of_the_base_has_the_same_spaces(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "base", tmp_path / "copy")
    family = (root / "family").read_text()
    assert digests(recipe(root, model={"family": family, "base": str(tmp_path / "copy")})) == digests(
        recipe(root)
    )


def test_another_vae_changes_the_latents_alone(root: Path, tmp_path: Path) -> None:
    family = (root / "family").read_text()
    shutil.copytree(root / "base", tmp_path / "copy")
    save_random_base(family, tmp_path / "other", seed=1)
    shutil.rmtree(tmp_path / "copy" / "vae")
    shutil.copytree(tmp_path / "other" / "vae", tmp_path / "copy" / "vae")
    changed = digests(recipe(root, model={"family": family, "base": str(tmp_path / "copy")}))
    before = digests(recipe(root))
    assert changed[0] != before[0]
    assert changed[1] == before[1]


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2", "tokenizer"])
def test_another_text_encoder_changes_the_text_alone(root: Path, tmp_path: Path, component: str) -> None:
    shutil.copytree(root / "base", tmp_path / "copy")
    file = next(path for path in sorted((tmp_path / "copy" / component).glob("*.json")))
    file.write_text(file.read_text() + "\n")
    family = (root / "family").read_text()
    changed = digests(recipe(root, model={"family": family, "base": str(tmp_path / "copy")}))
    before = digests(recipe(root))
    assert changed[0] == before[0]
    assert changed[1] != before[1]


def test_precision_and_tiling_change_what_they_decide(root: Path) -> None:
    before = digests(recipe(root))
    precise = digests(recipe(root, precompute={"text_dtype": "fp32"}))
    tiled = digests(recipe(root, precompute={"tile_above_px": 512}))
    assert (precise[0] == before[0], precise[1] == before[1]) == (True, False)
    assert (tiled[0] == before[0], tiled[1] == before[1]) == (False, True)


def test_the_vaes_precision_changes_the_latents_alone(root: Path) -> None:
    latents, text = digests(recipe(root))
    assert digests(recipe(root, precompute={"vae_dtype": "fp32", "compile": "auto"})) == (latents, text)
    half = digests(recipe(root, precompute={"vae_dtype": "fp16"}))
    assert half[0] != latents
    assert half[1] == text


def test_spaces_are_known_when_the_encoders_are_deleted(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "base", tmp_path / "base")
    shutil.copy(root / "family", tmp_path)
    chosen = recipe(tmp_path)
    before = digests(chosen)
    remember(chosen, latent_space(chosen))
    remember(chosen, text_space(chosen))
    for folder in (tmp_path / "base").iterdir():
        if folder.name.startswith(("vae", "text_encoder", "tokenizer")):
            shutil.rmtree(folder)
    assert digests(chosen) == before
    with pytest.raises(ModelError, match="vae"):
        latent_space(recipe(tmp_path, precompute={"tile_above_px": 512}))
    with pytest.raises(ModelError, match=r"text_encoder|tokenizer"):
        text_space(recipe(tmp_path, precompute={"text_dtype": "fp32"}))


def test_what_changed_names_the_nearest_difference(root: Path, tmp_path: Path) -> None:
    storage = {"storage": {"data": str(tmp_path / "data"), "runs": str(tmp_path / "runs")}}
    first = text_space(recipe(root, **storage))
    assert what_changed(first) == ()
    first.store().describe(first.description)
    assert what_changed(first) == ()
    second = text_space(recipe(root, precompute={"text_dtype": "fp32"}, **storage))
    assert what_changed(second) == ("dtype",)

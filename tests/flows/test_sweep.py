from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from eridiff.errors import DoesNotFit, RecipeError
from eridiff.recipe import Recipe
from flows.sweep import combinations, sweep
from tests.flows.doubles import Doubles, failing
from tests.flows.project import make_base, make_project


def test_every_combination_has_a_name() -> None:
    found = dict(combinations({"network.linear": [4, 8], "train.lr": [0.1]}))
    assert found == {
        "linear 4, lr 0.1": {"network.linear": 4, "train.lr": 0.1},
        "linear 8, lr 0.1": {"network.linear": 8, "train.lr": 0.1},
    }


@pytest.mark.parametrize("values", [{}, {"train.lr": []}, {"precompute.text_dtype": ["fp32"]}])
def test_what_the_cache_depends_on_cannot_be_swept(values: dict[str, list[object]]) -> None:
    with pytest.raises(RecipeError, match="cannot be swept"):
        list(combinations(values))


def test_runs_are_compared_that_were_trained_with_a_smaller_batch(
    doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class NoHoldout:
        recipe: Recipe
        subjects: tuple[()] = ()

    compared: list[tuple[int, int]] = []

    def work(recipe: Recipe) -> NoHoldout:
        compared.append((recipe.network.linear, recipe.train.batch_size))
        return NoHoldout(recipe)

    monkeypatch.setattr("flows.sweep._work", work)
    monkeypatch.setattr("flows.sweep.draw_sweep", lambda *_: None)
    doubles.done |= {"ingest", "precompute"}
    doubles.acts["train"] = failing(DoesNotFit("A training step does not fit."))
    sweep(doubles.config, {"network.linear": [8]})
    assert compared == [(8, 2)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_makes_the_cache_once_and_compares(prefect_server: None, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", make_base(tmp_path / "base"), num_images=6)
    found = sweep(str(project.recipe), {"network.linear": [1, 2]}, overrides={"train": {"steps": 2}})
    assert set(found) == {"linear 1", "linear 2", "sheet"}
    assert len(list(project.root.glob("runs/tiny/*/seal.json"))) == 2
    assert project.num_parts("latents") == 6
    with Image.open(found["sheet"]) as sheet:
        assert sheet.width > sheet.height / 2

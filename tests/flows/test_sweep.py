from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from eridiff.errors import RecipeError
from flows.sweep import combinations, sweep
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

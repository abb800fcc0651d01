from __future__ import annotations

from pathlib import Path

import pytest

from stages import pipeline

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    recipe = pipeline.load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.sample.prompts


def test_every_promised_recipe_is_there() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {
        "sdxl",
        "sd35-medium",
        "sd35-large",
        "flux-dev",
        "demo-sdxl",
        "demo-sd35",
        "demo-flux",
    }

"""The pipeline of an evaluation, opened as the recipe says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eridiff.evaluation import session as module
from eridiff.evaluation.session import opened
from eridiff.families.base import ModelFamily
from eridiff.recipe import Recipe
from tests.evaluation.conftest import CPU, World


@pytest.mark.parametrize(("name", "has_flash"), [("auto", True), ("math", False)])
def test_attention_is_the_one_that_the_recipe_trains_with(
    world: World, name: str, has_flash: bool, pipeline: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(self: ModelFamily, *_base: object, **_how: object) -> object:
        return pipeline

    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "model": {"family": world.family.name, "base": "unused"},
            "datasets": [{"folder_path": "unused"}],
            "train": {"attention": name, "dtype": "fp32"},
        }
    )
    work: Any = SimpleNamespace(recipe=recipe)
    monkeypatch.setattr(module, "_cached", lambda _work: world.cached)
    monkeypatch.setattr(module, "base_of", lambda _recipe: world.base)
    monkeypatch.setattr(type(world.family), "load_pipeline", loaded)
    with opened(work, CPU):
        assert torch.backends.cuda.math_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() == has_flash

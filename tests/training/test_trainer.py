"""What is refused before a base is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from eridiff import families
from eridiff.errors import RecipeError
from eridiff.recipe import Recipe, Train
from eridiff.training import session
from eridiff.training.distributed import Processes
from eridiff.training.session import open_session
from eridiff.training.trainer import check_optimizer
from tests.training.conftest import CPU, SAMPLES
from tests.training.test_optimizers import OneRate

ONE_RATE = f"{OneRate.__module__}.OneRate"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "adamw8bit", "loraplus_lr_ratio": 4.0},
        {"optimizer": "torch.optim.Muon"},  # takes matrices alone
        {"optimizer": ONE_RATE, "text_encoder_lr": 1e-5},  # of encoders that are not trained
    ],
)
def test_a_good_optimizer_passes(settings: dict[str, Any]) -> None:
    check_optimizer(Train.model_validate(settings), CPU)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"optimizer": "torch.optim.Adamw"}, "no such optimizer"),
        ({"optimizer_params": {"betas": [2.0, 0.9]}}, "refused its arguments"),
        ({"optimizer": ONE_RATE, "loraplus_lr_ratio": 4.0}, "several rates"),
        ({"optimizer": ONE_RATE, "text_encoder_lr": 1e-5, "train_text_encoder": True}, "several rates"),
    ],
)
def test_a_bad_optimizer_is_told_before_the_base_is_loaded(
    settings: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_arguments: object) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(session, "open_cached", lambda *_: None)
    monkeypatch.setattr(session, "_load_encoders", loaded)
    monkeypatch.setattr(session, "_load_denoiser", loaded)
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "model": {"family": families.names()[1], "base": "unused"},
            "datasets": [{"folder_path": "unused"}],
            "train": settings,
        }
    )
    store = SimpleNamespace(store=lambda: None)
    inputs: Any = SimpleNamespace(
        recipe=recipe, samples=SAMPLES, latents=store, text=store, cached_encoders=(), encoders=()
    )
    with pytest.raises(RecipeError, match=says):
        open_session(inputs, Processes(0, 1, CPU))

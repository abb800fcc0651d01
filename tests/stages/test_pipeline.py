from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from eridiff.errors import RecipeError
from stages import pipeline


def test_what_the_last_stage_refuses_is_told_before_the_first_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def stage(name: str) -> Any:
        def plan(_recipe: object) -> None:
            asked.append(name)
            if name == "evaluate":
                raise RecipeError("The metric cannot be imported.")

        return SimpleNamespace(plan=plan, run=lambda _recipe: pytest.fail(f"{name} ran"))

    monkeypatch.setattr(pipeline, "stage", stage)
    with pytest.raises(RecipeError, match="metric"):
        list(pipeline.run_all(None))  # pyright: ignore[reportArgumentType]
    assert asked == list(pipeline.NAMES)

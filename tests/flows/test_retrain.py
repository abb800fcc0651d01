from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eridiff.errors import DoesNotFit
from eridiff.recipe import Recipe
from eridiff.registry import Registry, Verdict
from flows.retrain import retrain
from stages import ingest, publish
from stages.stage import StagePlan, StageReport
from tests import lorafiles
from tests.flows.doubles import Doubles, failing

MADE_OF = "made of these images"


def verdict(folder: Path, decision: str = "promoted") -> Verdict:
    source = folder / "lora.safetensors"
    lorafiles.write_text(source, "weights")
    return Verdict(decision, "lower", MADE_OF, "run", "snapshot", str(source), 0.5, 0.6)  # type: ignore[arg-type]


@pytest.fixture
def judging(doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> Doubles:
    """Doubles of all stages; `publish` promotes whatever it is given, once."""
    registry = Registry(doubles.folder / "registry", "double")

    def judge(recipe: Recipe) -> StageReport:
        doubles.calls.append(("publish", recipe.train.batch_size))
        registry.add(verdict(doubles.folder), keep=2, serve=None)
        outputs = {"verdict": "promoted: lower", "version": "1"}
        return StageReport("publish", 1, 0, 0, 0.1, 0, outputs)

    def plan(_recipe: Recipe) -> StagePlan:
        known = registry.history().judged(MADE_OF) is not None
        return StagePlan("publish", int(known), int(not known))

    stage = doubles.module("publish")
    monkeypatch.setattr(stage, "run", judge)
    original = doubles.module
    monkeypatch.setattr("stages.pipeline.stage", lambda name: stage if name == "publish" else original(name))
    monkeypatch.setattr(ingest, "plan", doubles.module("ingest").plan)
    monkeypatch.setattr(publish, "plan", plan)
    monkeypatch.setattr(publish, "made_of", lambda _: MADE_OF)
    return doubles


def names(doubles: Doubles) -> list[str]:
    return [call[0] for call in doubles.calls]


def test_new_images_are_trained_judged_and_told(judging: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "flows.events.emit_event", lambda event, **about: told.append({"event": event} | about)
    )
    state = retrain(judging.config, return_state=True)
    assert state.message == "promoted: lower"
    assert names(judging) == ["ingest", "precompute", "precompute", "train", "evaluate", "publish"]
    (event,) = told
    assert event["event"] == "eridiff.lora.promoted"
    assert event["resource"]["prefect.resource.id"] == "eridiff.lora.double"
    assert event["payload"]["config"] == judging.config


def test_without_a_change_nothing_runs(judging: Doubles) -> None:
    retrain(judging.config)
    judging.calls.clear()
    state = retrain(judging.config, return_state=True)
    assert state.is_completed()
    assert state.message == "No change since version 1 was promoted: nothing to train."
    assert judging.calls == []


def test_a_training_that_nobody_judged_yet_is_only_judged(judging: Doubles) -> None:
    judging.done |= {"ingest", "precompute", "train", "evaluate"}
    retrain(judging.config)
    assert names(judging) == ["publish"]


def test_what_was_trained_with_a_smaller_batch_is_what_is_judged(judging: Doubles) -> None:
    judging.done |= {"ingest", "precompute"}
    judging.acts["train"] = failing(DoesNotFit("A training step does not fit."))
    retrain(judging.config)
    assert [call[:2] for call in judging.calls] == [
        ("train", 4),
        ("train", 2),
        ("evaluate", 2),
        ("publish", 2),
    ]


@pytest.mark.parametrize(("start_from", "warm"), [("scratch", False), ("champion", True)])
def test_training_starts_where_the_recipe_says(judging: Doubles, start_from: str, warm: bool) -> None:
    registry = Registry(judging.folder / "registry", "double")
    champion = registry.add(
        Verdict("promoted", "", "older images", "run", "old", verdict(judging.folder).source, None, None),
        keep=2,
        serve=None,
    )
    started: list[Path | None] = []
    judging.acts["train"] = lambda recipe: started.append(recipe.network.init_from)
    retrain(judging.config, overrides={"retrain": {"start_from": start_from}})
    assert started == [registry.file(champion) if warm else None]


def test_the_flows_load_no_tensor_library() -> None:
    check = (
        "import sys, flows.retrain, flows.train_lora, flows.single_stage;"
        "print(*sorted({'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

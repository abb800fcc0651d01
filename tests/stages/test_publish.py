from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eridiff import families
from eridiff.errors import StoreError
from eridiff.evaluation.holdout import Losses
from eridiff.recipe import Recipe, load
from eridiff.registry import Registry
from eridiff.store.files import digest_json
from eridiff.store.runs import Run
from stages import publish
from tests import lorafiles


@dataclass
class DoubleDuel:
    """A duel whose losses are known beforehand."""

    work: Any
    champion: Any
    means: tuple[float, float] = (0.5, 0.6)

    def losses(self) -> tuple[Losses, Losses]:
        challenger, rival = self.means
        return Losses(((challenger,),)), Losses(((rival,),))


class Named:
    """Something with attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: cats\nmodel: {{family: sdxl, base: b}}\ndatasets: [{{folder_path: {tmp_path}}}]\n"
        f"storage: {{data: {tmp_path}/data, runs: {tmp_path}/runs, registry: {tmp_path}/registry}}\n"
        f"publish: {{to: {tmp_path}/served, margin: 0.1}}\n"
    )
    return load(path, option_models=families.option_models())


@pytest.fixture
def judge(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Publishes a LoRA of a content with losses of its own and its rival."""

    def run(content: str, challenger: float, rival: float) -> dict[str, str]:
        source = tmp_path / f"{content}.safetensors"
        lorafiles.write_text(source, content)
        work = Named(run=Named(id="run"), snapshot=Named(id="snapshot"), final=Named(path=source))
        monkeypatch.setattr(publish, "made_of", lambda _: content)
        monkeypatch.setattr(publish, "_duel", lambda *_: DoubleDuel(work, None, (challenger, rival)))
        monkeypatch.setattr(publish, "_fight", lambda _: None)
        return dict(publish.run(recipe).outputs)

    monkeypatch.setattr(DoubleDuel, "draw", lambda _: None, raising=False)
    return run


def served(tmp_path: Path) -> str:
    return lorafiles.read_text(tmp_path / "served" / "cats.safetensors")


def test_a_better_lora_is_served(judge: Any, recipe: Recipe, tmp_path: Path) -> None:
    outputs = judge("one", 0.5, 0.6)
    assert served(tmp_path) == "one"
    assert outputs["verdict"] == (
        "promoted: hold-out loss 0.50000 against the base's 0.60000: "
        "16.67% lower, more than 10.0% lower is asked"
    )
    assert publish.plan(recipe).complete


@pytest.mark.parametrize("challenger", [0.55, 0.6, 0.7])
def test_what_is_not_better_by_the_margin_is_not(
    judge: Any, recipe: Recipe, tmp_path: Path, challenger: float
) -> None:
    judge("one", 0.5, 0.7)
    outputs = judge("two", challenger, 0.6)
    assert outputs["verdict"].startswith("rejected: ")
    assert "against champion 1's 0.60000" in outputs["verdict"]
    assert served(tmp_path) == "one"
    assert publish.plan(recipe).complete


def test_what_was_judged_is_not_judged_again(judge: Any, recipe: Recipe) -> None:
    judge("one", 0.5, 0.6)
    judge("one", 0.9, 0.6)
    assert len(Registry(recipe.storage.registry, "cats").history().versions) == 1


def test_a_served_file_that_went_missing_is_served_again(judge: Any, recipe: Recipe, tmp_path: Path) -> None:
    judge("one", 0.5, 0.6)
    (tmp_path / "served" / "cats.safetensors").unlink()
    assert not publish.plan(recipe).complete
    judge("one", 0.5, 0.6)
    assert served(tmp_path) == "one"
    assert publish.plan(recipe).complete


def pretend_inputs(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets a recipe's run be named by its section `train` alone."""

    def inputs_of(recipe: Recipe, _snapshot: object) -> Named:
        return Named(run=Run(folder / "runs" / "cats", digest_json(recipe.train.model_dump(mode="json"))))

    monkeypatch.setattr(publish, "inputs_of", inputs_of)
    monkeypatch.setattr(publish, "current_snapshot", lambda _: None)


def test_a_run_whose_lora_was_deleted_is_not_judged(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_inputs(monkeypatch, tmp_path)
    publish.inputs_of(recipe, None).run.seal({})  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="no finished training to publish"):
        publish.run(recipe)


def test_a_verdict_holds_for_the_same_steps_in_smaller_batches(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_of(**train: int) -> str:
        return publish.made_of(recipe.model_copy(update={"train": recipe.train.model_copy(update=train)}))

    pretend_inputs(monkeypatch, tmp_path)
    whole = made_of(batch_size=4)
    assert made_of(batch_size=2, gradient_accumulation_steps=2) == whole
    assert made_of(batch_size=2) != whole


def test_a_damaged_history_stops_everything(judge: Any, recipe: Recipe) -> None:
    recipe.storage.registry.mkdir()
    (recipe.storage.registry / "cats.json").write_text("{")
    with pytest.raises(StoreError, match="history"):
        judge("one", 0.5, 0.6)

"""Whole runs on a GPU, where tensors lie on two sides, blocks are compiled and passes are recorded."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.encoding.spaces import family_of
from eridiff.errors import Interrupted
from eridiff.evaluation.results import LossFile
from eridiff.evaluation.work import gather
from eridiff.lora.encoders import is_of_encoder
from eridiff.lora.read import read_lora
from eridiff.recipe import Recipe
from eridiff.training.session import Session
from stages import ingest, pipeline, precompute, train
from stages.dataset import current_snapshot
from tests.stages.test_train import recipe, run_of, write_images

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
DEVICE = "cuda"
COMPILED = {"compile": DEVICE == "cuda"}
"""Takes most of a test's time: once a family, where something else is tried, too."""
SECTIONS: dict[str, dict[str, Any]] = {
    "ingest": {"holdout": 0.35},
    "train": {"steps": 6, "dtype": "bf16", "compile": False},
    "save": {"save_every": 3, "dtype": "fp16"},
    "sample": {
        "prompts": ["a white ellipse"],
        "width": 64,
        "height": 64,
        "sample_steps": 2,
        "strengths": [0, 1],
        "checkpoints": "all",
    },
    "validation": {"timesteps": 2},
}


def on_gpu(folder: Path, family: str, **changes: dict[str, Any]) -> Recipe:
    names = SECTIONS | changes
    sections = {name: {**SECTIONS.get(name, {}), **changes.get(name, {})} for name in names}
    return recipe(folder, family, **sections).model_copy(update={"device": DEVICE})


@pytest.fixture(params=families.names())
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path: Path, family: str) -> Path:
    """Images and a base; everything else is made on the GPU."""
    write_images(tmp_path / "images")
    save_random_base(family, tmp_path / "base")
    return tmp_path


def check_whole_run(made: Recipe, *, of_encoders: bool = False) -> None:
    """Runs every stage, looks at what there is then, and runs every stage again."""
    outputs = [report.outputs for report in pipeline.run_all(made)][-1]
    for name in ("grid", "checkpoint grid", "report", "lora"):
        assert Path(outputs[name]).is_file()
    run = run_of(made)
    work = gather(made, run, current_snapshot(made))
    assert [lora.step for lora in work.loras] == [3, 6]
    for file in work.loras:
        layers = read_lora(file.path, family_of(made)).layers  # refuses what is not finite
        assert any(adapter.up.any() for adapter in layers.values())
        assert any(map(is_of_encoder, layers)) == of_encoders
    taken = LossFile(run.evaluation / "validation.json", work.grid_digest).read()
    assert len(taken) == 3, "the base and both files"
    assert all(math.isfinite(losses.mean) for losses in taken.values())
    assert [report.done for report in pipeline.run_all(made)] == [0] * len(pipeline.NAMES)


def test_every_family_goes_from_images_to_a_page(folder: Path, family: str) -> None:
    check_whole_run(on_gpu(folder, family))


def test_trained_text_encoders_go_into_file_and_grid(folder: Path, family: str) -> None:
    settings = {"train_text_encoder": True, "caption_dropout_rate": 0.3}
    if family == "sdxl":
        settings |= COMPILED  # nothing of a caption is cached: recordings with empty tensors
    check_whole_run(on_gpu(folder, family, train=settings), of_encoders=True)


@pytest.mark.parametrize("family", ["sdxl"], indirect=True)
@pytest.mark.parametrize("network", [{"init": "olora"}, {"conv": 2, "targets": "all"}])
def test_other_layers_and_starts(folder: Path, family: str, network: dict[str, Any]) -> None:
    check_whole_run(on_gpu(folder, family, network=network))


@pytest.mark.parametrize("family", ["sd35"], indirect=True)
def test_a_compiled_start_from_weights(folder: Path, family: str) -> None:
    check_whole_run(on_gpu(folder, family, network={"init": "pissa"}, train=COMPILED))


@pytest.mark.parametrize("family", ["flux"], indirect=True)
@pytest.mark.parametrize(
    ("quantize", "train"),
    [("fp8", COMPILED), ("int8", COMPILED | {"offload": 0.5}), ("fp8", {"offload": 0.5}), ("nf4", {})],
)
def test_bases_in_few_bits_and_away(folder: Path, family: str, quantize: str, train: dict[str, Any]) -> None:
    check_whole_run(on_gpu(folder, family, model={"quantize": quantize}, train=train))


@pytest.mark.parametrize("family", ["sd35"], indirect=True)
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_interrupted_it_goes_on(
    folder: Path, family: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"optimizer": optimizer, "ema_config": {"use_ema": True}}
    made = on_gpu(folder, family, train=settings)
    ingest.run(made)
    precompute.run(made)
    export = Session.export

    def told_to_stop(session: Session, step: int, weights: Mapping[str, Tensor]) -> None:
        export(session, step, weights)
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Session, "export", told_to_stop)
    with pytest.raises(Interrupted):
        train.run(made)
    monkeypatch.undo()
    assert not run_of(made).sealed
    report = train.run(made)
    assert (report.done, report.reused) == (2, 4)
    check_whole_run(made)

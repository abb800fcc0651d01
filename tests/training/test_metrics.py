from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from eridiff.recipe import Logging
from eridiff.store.runs import Run
from eridiff.training.metrics import Window, rewind, trackers
from eridiff.training.trainer import StepResult


def result(loss: float, num_samples: int) -> StepResult:
    return StepResult(1, 0, num_samples, loss, 2 * loss, 0.5, 1e-4, stop=False)


def test_a_window_means_over_samples_and_survives_a_checkpoint() -> None:
    window = Window().plus(result(1.0, 1), 0.5)
    window = Window.of(window.kept()).plus(result(4.0, 3), 1.5)
    assert window.means() == {
        "loss": 3.25,
        "plain_loss": 6.5,
        "grad_norm": 0.5,
        "ms_per_step": 1000.0,
        "samples_per_s": 2.0,
    }
    assert Window.of({}) == Window()


def test_a_metrics_file_is_cut_back_to_a_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rewind(path, 3)
    assert not path.exists()
    path.write_text('{"step": 2}\n{"step": 3}\n{"step": 4}\n{"st')
    rewind(path, 3)
    assert path.read_text() == '{"step": 2}\n{"step": 3}\n'


def test_tensorboard_and_wandb_get_what_the_file_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            told.append(("tensorboard", Path(folder).name, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, value, step))

        def close(self) -> None:
            told.append("closed")

    @contextmanager
    def init(**settings: Any):
        told.append(("wandb", settings["project"], settings["id"], settings["resume"]))
        yield SimpleNamespace(log=lambda values, step: told.append((values, step)))

    for name, content in {
        "torch.utils.tensorboard": {"SummaryWriter": SummaryWriter},
        "wandb": {"init": init},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    run = Run(tmp_path / "demo", "abc")
    settings = Logging(tensorboard=True, wandb_project="p")
    with trackers(settings, run, step=4, config={}) as tracks:
        for track in tracks:
            track(5, {"loss": 0.5})
    assert run.metrics.read_text() == '{"step": 5, "loss": 0.5}\n'
    assert told == [
        ("tensorboard", "tensorboard", 5),
        ("wandb", "p", "abc", "allow"),
        ("train/loss", 0.5, 5),
        ({"train/loss": 0.5}, 5),
        "closed",
    ]

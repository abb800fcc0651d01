"""The pass over the largest batch before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eridiff.errors import ModelError
from eridiff.store.runs import Run
from eridiff.training import passes as module
from eridiff.training.distributed import processes
from eridiff.training.order import Order
from eridiff.training.probe import probe
from eridiff.training.trainer import Trainer
from tests.training.conftest import CPU, SAMPLES, World
from tests.training.jobs import make_job


def probed(world: World, folder: Path, **settings: Any) -> Trainer:
    job = make_job(world, Run(folder, "abc"), **settings)
    with processes(CPU) as us:
        trainer = Trainer(job.family, job.denoiser, job.parameters, job.train, us)
        before = {name: value.detach().clone() for name, value in trainer.parameters.items()}
        probe(job, us, trainer)
    assert trainer.step == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.parameters.items())
    return trainer


def test_the_largest_batch_is_of_the_bucket_with_most_pixels_in_a_batch() -> None:
    drawn = Order(SAMPLES, 2, 1).largest()
    wide = {sample.sample_id for sample in SAMPLES if sample.bucket_width == 128}
    assert len(drawn) == 2
    assert {draw.sample_id for draw in drawn} <= wide
    # Seven showings of squares are more pixels than three of the wide ones.
    many = Order(SAMPLES, 8, 1).largest()
    assert len(many) == 7
    assert not {draw.sample_id for draw in many} & wide
    assert len(set(many)) == 7, "each showing is drawn once"


def test_it_takes_the_largest_batch_and_changes_nothing(
    any_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[torch.Size] = []
    losses = module.losses

    def noted(family: Any, denoiser: Any, batch: Any) -> Any:
        shapes.append(batch.clean.shape)
        return losses(family, denoiser, batch)

    monkeypatch.setattr(module, "losses", noted)
    probed(any_world, tmp_path, batch_size=2)
    (shape,) = shapes
    assert (shape[0], *shape[2:]) == (2, 8, 16)


def test_what_does_not_fit_stops_with_the_setting_to_change(
    any_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*args: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(module, "losses", scarce)
    with pytest.raises(ModelError, match=r"does not fit(?s:.*)train\.batch_size: 2 and .*_steps: 2"):
        probed(any_world, tmp_path, batch_size=4)
    with pytest.raises(ModelError, match=r"model\.quantize: int8"):
        probed(any_world, tmp_path, batch_size=1)

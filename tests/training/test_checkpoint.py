from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from eridiff.errors import StoreError
from eridiff.store.runs import Run
from eridiff.training import checkpoint
from eridiff.training.checkpoint import Checkpoint
from eridiff.training.shelf import folder_of, steps_in


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "demo", "abc")


def names(run: Run) -> list[str]:
    return [path.name for path in run.checkpoints.iterdir()]


def make(step: int, *, ema: bool = False) -> Checkpoint:
    parameter = nn.Parameter(torch.full((4, 3), float(step)))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    return Checkpoint(
        step=step,
        run="abc",
        lora={"layer.lora_A": parameter},
        optimizer=optimizer.state_dict(),
        ema={"layer.lora_A": torch.ones(4, 3)} if ema else None,
        extra={"loss_sum": 0.1 + 0.2},
    )


@pytest.mark.parametrize("ema", [False, True])
def test_what_is_saved_is_what_is_loaded(run: Run, ema: bool) -> None:
    saved = make(250, ema=ema)
    folder = checkpoint.save(run, saved, keep=4)
    assert folder == run.folder / "checkpoints" / "step-000250"
    loaded = checkpoint.load(folder)
    assert (loaded.step, loaded.run, loaded.extra) == (250, "abc", {"loss_sum": 0.1 + 0.2})
    assert torch.equal(loaded.lora["layer.lora_A"], saved.lora["layer.lora_A"])
    assert (loaded.ema is not None) == ema
    moments = saved.optimizer["state"][0]
    assert all(torch.equal(loaded.optimizer["state"][0][name], moments[name]) for name in moments)
    assert loaded.optimizer["param_groups"] == saved.optimizer["param_groups"]


def test_no_pickle_is_written(run: Run) -> None:
    folder = checkpoint.save(run, make(1, ema=True), keep=1)
    files = {path.name for path in folder.iterdir()}
    assert files == {"lora.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"}
    assert json.loads((folder / "state.json").read_text())["step"] == 1


def test_only_the_newest_are_kept(run: Run) -> None:
    for step in (10, 20, 30, 1_000_000):
        checkpoint.save(run, make(step), keep=2)
    assert steps_in(run) == [30, 1_000_000]
    newest = checkpoint.newest(run)
    assert newest is not None
    assert newest.step == 1_000_000


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink], ids=["flip", "truncate", "unlink"])
@pytest.mark.parametrize("name", ["lora.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    run: Run, caplog: pytest.LogCaptureFixture, damage, name: str
) -> None:
    checkpoint.save(run, make(10), keep=4)
    damage(checkpoint.save(run, make(20), keep=4) / name)
    with pytest.raises(StoreError):
        checkpoint.load(folder_of(run, 20))
    newest = checkpoint.newest(run)
    assert newest is not None
    assert newest.step == 10
    assert "step 20 cannot be used" in caplog.text


def test_a_step_saved_again_replaces_the_damaged_one(run: Run) -> None:
    folder = checkpoint.save(run, make(20), keep=4)
    flip(folder / "lora.safetensors")
    checkpoint.save(run, make(20), keep=4)
    assert checkpoint.load(folder).step == 20


def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_half_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(run, make(10), keep=1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match="disk is full"):
        checkpoint.save(run, make(20), keep=1)
    assert names(run) == ["step-000010"]


def test_what_a_killed_save_left_is_cleared_by_the_next(run: Run) -> None:
    (run.checkpoints / ".step-000010.tmp").mkdir(parents=True)
    assert checkpoint.newest(run) is None
    checkpoint.save(run, make(10), keep=1)
    assert names(run) == ["step-000010"]


def test_an_optimizer_whose_state_cannot_be_kept_is_refused(run: Run) -> None:
    bad = Checkpoint(1, "abc", {}, {"state": {0: {"closure": print}}})
    with pytest.raises(StoreError, match="this optimizer cannot be written"):
        checkpoint.save(run, bad, keep=1)
    assert names(run) == []

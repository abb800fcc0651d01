from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eridiff import families
from eridiff.errors import Interrupted, ModelError, StoreError
from eridiff.store.runs import Run
from eridiff.training import checkpoint, loop
from eridiff.training.batches import step_batches
from eridiff.training.checkpoint import Checkpoint
from eridiff.training.distributed import Processes, processes
from eridiff.training.loop import train
from eridiff.training.schedules import rate_factor
from eridiff.training.shelf import folder_of, steps_in
from eridiff.training.step import losses
from eridiff.training.trainer import Trainer
from tests.training.conftest import CPU, World, make_denoiser, make_world
from tests.training.jobs import Told, damage, go, make_job

ROOT = Path(__file__).parents[2]
FAMILY = families.names()[1]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "demo", "abc")


def rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    """Weights, average and optimizer equal to the bit."""
    assert a.step == b.step
    for name, value in a.lora.items():
        assert torch.equal(value, b.lora[name]), name
    assert (a.ema is None) == (b.ema is None)
    for name, value in (a.ema or {}).items():
        assert torch.equal(value, (b.ema or {})[name]), name
    assert a.optimizer["param_groups"] == b.optimizer["param_groups"]
    for number, state in a.optimizer["state"].items():
        torch.testing.assert_close(state, b.optimizer["state"][number], rtol=0, atol=0)


def test_training_changes_the_lora_and_nothing_else(world: World, run: Run) -> None:
    before, _ = make_denoiser(world)
    job = make_job(world, run, steps=4)
    outcome, told = go(job)
    assert outcome.steps == 4
    assert [result.step for result in told.steps] == [1, 2, 3, 4]
    after = dict(job.denoiser.named_parameters())
    for name, value in before.named_parameters():
        assert torch.equal(value, after[name]) == (name not in job.parameters), name
        assert (after[name].grad is not None) == (name in job.parameters)
    assert all(parameter.dtype == torch.float32 for parameter in job.parameters.values())


def test_the_loss_falls_on_fixed_data(world: World, run: Run) -> None:
    _, told = go(make_job(world, run, steps=40, lr=0.02, caption_dropout_rate=0, log_every=40))
    losses = [result.plain_loss for result in told.steps]
    assert sum(losses[-10:]) < 0.98 * sum(losses[:10])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ema_config": {"use_ema": True, "ema_decay": 0.9}, "gradient_accumulation_steps": 2},
        {"optimizer": "torch.optim.SGD", "optimizer_params": {"momentum": 0.9}, "lr_scheduler": "cosine"},
        {"optimizer": "adamw8bit"},
        {"lr_warmup_steps": 6, "lr_scheduler": "linear"},
        {"loraplus_lr_ratio": 4.0},
    ],
    ids=["default", "ema+accumulation", "sgd+cosine", "8 bits", "warm-up", "LoRA+"],
)
def test_stopped_and_resumed_equals_straight(
    any_world: World, tmp_path: Path, settings: dict[str, Any]
) -> None:
    straight, resumed = Run(tmp_path / "a", "abc"), Run(tmp_path / "b", "abc")
    _, told = go(make_job(any_world, straight, log_every=3, **settings))
    with pytest.raises(Interrupted, match="Stopped at step 4 of 8"):
        go(make_job(any_world, resumed, log_every=3, **settings), stop_at=4)
    outcome, later = go(make_job(any_world, resumed, log_every=3, **settings))
    assert outcome.resumed_from == later.resumed_from == 4
    assert later.steps == told.steps[4:]
    for left, right in zip(*(steps_in(run)[-1:] for run in (straight, resumed)), strict=True):
        assert_same(
            *(checkpoint.load(folder_of(run, step)) for run, step in ((straight, left), (resumed, right)))
        )
    timeless = [
        {key: row[key] for key in ("step", "loss", "plain_loss", "grad_norm", "lr")} for row in rows(straight)
    ]
    assert [{key: row[key] for key in timeless[0]} for row in rows(resumed)] == timeless


def test_a_damaged_checkpoint_costs_only_its_steps(
    any_world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight, damaged = Run(tmp_path / "a", "abc"), Run(tmp_path / "b", "abc")
    go(make_job(any_world, straight))
    with pytest.raises(Interrupted):
        go(make_job(any_world, damaged), stop_at=7)
    (folder_of(damaged, 7) / "optimizer.safetensors").write_bytes(b"")
    outcome, _ = go(make_job(any_world, damaged))
    assert outcome.resumed_from == 6
    assert "step 7 cannot be used" in caplog.text
    assert_same(*(checkpoint.load(folder_of(run, 8)) for run in (straight, damaged)))
    assert [row["step"] for row in rows(damaged)] == list(range(1, 9))


def test_a_finished_run_is_not_trained_further(any_world: World, run: Run) -> None:
    go(make_job(any_world, run))
    outcome, told = go(make_job(any_world, run))
    assert (outcome.resumed_from, outcome.steps, told.steps) == (8, 8, [])
    assert set(told.exported) == {8}


def test_a_file_is_exported_before_its_checkpoint_stands(any_world: World, run: Run) -> None:
    """So that no kill leaves a checkpoint whose file is never written."""
    job = make_job(any_world, run, steps=3)
    seen = []
    told = Told()
    told.export = lambda step, weights: seen.append((step, steps_in(run)))
    with processes(CPU) as us:
        train(job, us, told)
    assert seen == [(3, [])]


def test_a_full_disk_at_a_checkpoint_is_told_once_and_the_older_one_stays(
    any_world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []

    def full(run: Run, kept: Checkpoint, *, keep: int) -> None:
        saved.append(kept.step)
        if kept.step == 6:
            raise StoreError("The disk is full: nothing was written.")
        save(run, kept, keep=keep)

    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(StoreError, match="disk is full"):
        go(make_job(any_world, run))
    assert saved == [3, 6]
    assert steps_in(run) == [3]


def test_checkpoints_of_another_run_are_refused(any_world: World, run: Run) -> None:
    go(make_job(any_world, run, steps=3))
    other = Run(run.root, "other")
    run.folder.rename(other.folder)
    with pytest.raises(StoreError, match="another run"):
        go(make_job(any_world, other, steps=3))


def test_exports_are_the_average_where_there_is_one(any_world: World, run: Run) -> None:
    job = make_job(any_world, run, ema_config={"use_ema": True, "ema_decay": 0.9})
    _, told = go(job)
    assert sorted(told.exported) == [3, 6, 8]
    kept = checkpoint.load(folder_of(run, 8))
    assert kept.ema is not None
    for name, value in told.exported[8].items():
        assert torch.equal(value, kept.ema[name])
        assert not torch.equal(value, job.parameters[name])


def test_rates_follow_the_schedule_and_metrics_tell_them(any_world: World, run: Run) -> None:
    go(make_job(any_world, run, lr=0.01, lr_warmup_steps=2, lr_scheduler="cosine"))
    wanted = [0.01 * rate_factor(s, shape="cosine", warmup_steps=2, num_steps=8) for s in range(8)]
    assert [row["lr"] for row in rows(run)] == wanted
    assert {"loss", "plain_loss", "grad_norm", "ms_per_step", "samples_per_s", "epoch"} < set(rows(run)[0])


def test_a_step_is_the_mean_over_its_samples_whatever_the_batches(any_world: World, run: Run) -> None:
    """The gradient of two accumulated batches, one of them partial, is that of their samples' mean loss."""
    job = make_job(any_world, run, steps=1, batch_size=3, gradient_accumulation_steps=4, max_grad_norm=0)
    (work,) = step_batches(job.batches, job.order, steps=range(1), accumulation=4, rank=0, num_ranks=1)
    assert len({len(batch) for batch in work.batches}) > 1
    every = torch.cat([losses(job.family, job.denoiser, batch).weighted for batch in work.batches])
    wanted = torch.autograd.grad(every.mean(), list(job.parameters.values()))
    mean = every.mean().item()
    _, told = go(job)
    assert told.steps[0].num_samples == len(every)
    assert told.steps[0].loss == pytest.approx(mean, rel=1e-5)
    for parameter, gradient in zip(job.parameters.values(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_sample_and_checkpoint(
    any_world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(any_world, run)
    bad = job.order.batch(4).draws[1].sample_id
    make = job.batches.batch

    def spoilt(step, draws):
        batch = make(step, draws)
        if step == 4:
            batch.clean[batch.sample_ids.index(bad)] = float("nan")
        return batch

    monkeypatch.setattr(job.batches, "batch", spoilt)
    with pytest.raises(ModelError) as caught:
        go(job)
    assert str(caught.value.where) == f"step 5, samples {bad}"
    assert "step-000003" in str(caught.value)
    assert all(parameter.isfinite().all() for parameter in job.parameters.values())
    assert steps_in(run) == [3]


def test_damage_in_the_store_saves_what_was_learnt_and_names_the_item(any_world: World, run: Run) -> None:
    job = make_job(any_world, run)
    damage(job, at=5)
    with pytest.raises(StoreError, match="stored item is damaged"):
        go(job)
    assert steps_in(run) == [3, 5]
    outcome, _ = go(make_job(any_world, run))
    assert outcome.resumed_from == 5


def start(world: Path, runs: Path, settings: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.jobs", FAMILY, str(world), str(runs), json.dumps(settings)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        text=True,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> int:
    _, error = process.communicate(timeout=240)
    assert process.returncode in (0, -signal.SIGKILL), error
    return process.returncode


def test_killed_and_resumed_equals_straight(tmp_path: Path) -> None:
    world = make_world(FAMILY, tmp_path / "world")
    straight, killed = Run(tmp_path / "a", "abc"), Run(tmp_path / "b", "abc")
    assert finish(start(tmp_path / "world", tmp_path / "b", {"kill_at": 5})) == -signal.SIGKILL
    assert steps_in(killed) == [3]
    outcome, resumed = go(make_job(world, killed))
    assert outcome.resumed_from == 3
    _, told = go(make_job(world, straight))
    assert resumed.steps == told.steps[3:]
    assert_same(*(checkpoint.load(folder_of(run, 8)) for run in (straight, killed)))
    assert [row["step"] for row in rows(killed)] == list(range(1, 9))


def start_pair(world: Path, runs: Path, settings: dict[str, Any]) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    torchrun = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(world, runs, settings, RANK=rank, LOCAL_RANK=rank, **torchrun) for rank in ("0", "1")]


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    world = make_world(FAMILY, tmp_path / "world")
    settings = {"batch_size": 3, "gradient_accumulation_steps": 2, "lr": 0.001}
    pair = start_pair(tmp_path / "world", tmp_path / "two", settings)
    assert [finish(process) for process in pair] == [0, 0]
    go(make_job(world, Run(tmp_path / "one", "abc"), **settings))
    one, two = Run(tmp_path / "one", "abc"), Run(tmp_path / "two", "abc")
    for alone, shared in zip(rows(one), rows(two), strict=True):
        assert alone["step"] == shared["step"]
        assert alone["loss"] == pytest.approx(shared["loss"], rel=1e-5)
        assert alone["grad_norm"] == pytest.approx(shared["grad_norm"], rel=1e-4)
    ends = [checkpoint.load(folder_of(run, 8)) for run in (one, two)]
    for name, value in ends[0].lora.items():
        torch.testing.assert_close(value, ends[1].lora[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("rank", "step", "saved"), [(0, 5, [3, 5]), (1, 5, [3, 5]), (1, 0, [])])
def test_damage_that_one_process_finds_stops_both_and_saves_what_was_learnt(
    tmp_path: Path, rank: int, step: int, saved: list[int]
) -> None:
    make_world(FAMILY, tmp_path / "world")
    pair = start_pair(tmp_path / "world", tmp_path / "two", {"damaged": [rank, step], "batch_size": 2})
    errors = [process.communicate(timeout=240)[1] for process in pair]
    assert [process.returncode for process in pair] == [1, 1]
    assert "stored item is damaged" in errors[rank]
    assert "Another process could not read" in errors[1 - rank]
    assert steps_in(Run(tmp_path / "two", "abc")) == saved


def test_no_process_ends_before_the_checkpoint_stands(any_world: World, run: Run) -> None:
    """Since torchrun ends all of them once one has ended."""
    seen = []

    class Watched(Processes):
        def wait(self) -> None:
            seen.append(steps_in(run))

    with pytest.raises(Interrupted):
        train(make_job(any_world, run), Watched(0, 1, CPU), Told(stop_at=4))
    assert seen[-1] == [3, 4]


def test_the_peak_of_memory_is_that_of_steps(
    any_world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = [7]

    def takes(amount: int) -> Callable[..., float]:
        def take(*_arguments: object, **_named: object) -> float:
            peaks[0] = max(peaks[0], amount)
            return 0.5

        return take

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _device: peaks.__setitem__(0, 0))
    monkeypatch.setattr(loop, "probe", takes(8))
    monkeypatch.setattr(loop, "check_gradients", takes(9))
    us, job = Processes(0, 1, CPU), make_job(any_world, run)
    trainer = Trainer(job.family, job.denoiser, job.parameters, job.train, us)
    assert loop._tried(job, us, trainer) == 0.5
    assert peaks == [0]


def test_a_checkpoint_of_an_optimizer_laid_out_otherwise_says_what_to_do(any_world: World, run: Run) -> None:
    with pytest.raises(Interrupted):
        go(make_job(any_world, run, loraplus_lr_ratio=4.0), stop_at=4)
    with pytest.raises(StoreError, match="does not fit") as caught:
        go(make_job(any_world, run))
    assert caught.value.where == "run abc, step 4"
    assert "another name" in str(caught.value)


def test_two_processes_that_share_the_base_train_as_two_that_hold_it_do(tmp_path: Path) -> None:
    """Also where a process's share of a batch is empty, so that it makes no pass while the other does."""
    make_world(FAMILY, tmp_path / "world")
    settings = {"batch_size": 1, "lr": 0.001}
    for name, how in (("sharded", {"shard_base": True}), ("whole", {})):
        pair = start_pair(tmp_path / "world", tmp_path / name, {**settings, **how})
        assert [finish(process) for process in pair] == [0, 0]
    sharded, whole = (Run(tmp_path / name, "abc") for name in ("sharded", "whole"))
    assert_same(*(checkpoint.load(folder_of(run, 8)) for run in (sharded, whole)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_gpu_checks_its_attention_trains_and_resumes(larger_world: World, run: Run, dtype: str) -> None:
    cuda = torch.device("cuda")
    with pytest.raises(Interrupted):
        go(make_job(larger_world, run, device=cuda, dtype=dtype), stop_at=4)
    outcome, told = go(make_job(larger_world, run, device=cuda, dtype=dtype))
    assert outcome.attention_difference is not None
    assert (outcome.resumed_from, [result.step for result in told.steps]) == (4, [5, 6, 7, 8])
    assert all(0 < row["peak_gpu_gb"] < 80 for row in rows(run))
    kept = checkpoint.load(folder_of(run, 8))
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in kept.lora.values())


@pytest.mark.gpu
def test_a_gpu_trains_as_a_cpu_does(larger_world: World, tmp_path: Path) -> None:
    """The same samples, noise and times: only rounding differs."""
    losses_on = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        job = make_job(larger_world, Run(tmp_path / device.type, "abc"), device=device, lr=1e-4)
        losses_on.append([result.loss for result in go(job)[1].steps])
    assert losses_on[1] == pytest.approx(losses_on[0], rel=1e-3)

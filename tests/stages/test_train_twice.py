"""Two trainings of one recipe at once: one folder, one writer at a time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eridiff.errors import StoreError
from eridiff.locks import held
from stages import pipeline, train
from tests.flows.project import Project, make_base, make_project

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = make_project(tmp_path / "project", make_base(tmp_path / "base"), num_images=4)
    for stage in ("ingest", "precompute"):
        pipeline.run_stage(stage, pipeline.load_recipe(made.recipe))
    return made


def start(project: Project) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stages.train", str(project.recipe), "--json"]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )


@pytest.mark.slow
def test_of_two_at_once_one_trains_and_the_other_finds_it_done(project: Project) -> None:
    reports, said = [], ""
    for running in [start(project), start(project)]:
        out, err = running.communicate()
        assert running.returncode == 0, err
        reports.append(json.loads(out))
        said += err
    assert sorted(report["done"] for report in reports) == [0, 12]
    assert f"on {socket.gethostname()} holds it" in " ".join(said.split())
    (metrics,) = project.root.glob("runs/tiny/*/metrics.jsonl")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert pipeline.stage("train").plan(pipeline.load_recipe(project.recipe)).complete


@pytest.mark.slow
def test_who_waits_goes_on_where_a_killed_one_was(project: Project) -> None:
    first = start(project)
    while not list(project.root.glob("runs/tiny/*/checkpoints/step-*")):
        assert first.poll() is None
        time.sleep(0.01)
    second = start(project)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    out, err = second.communicate()
    assert second.returncode == 0, err
    assert json.loads(out)["done"] < 12


def test_processes_of_torchrun_do_not_wait(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = pipeline.load_recipe(project.recipe)
    run = Path(project.root / "runs" / "tiny" / train.plan(recipe).details["run"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        held(run / "training.lock", "the run"),
        pytest.raises(StoreError, match=f"process {os.getpid()} on {socket.gethostname()}"),
    ):
        train.run(recipe)
    assert not (run / "environment.json").exists()

"""Prefect for real: a server, a worker and deployments, as a user starts them; and all of them killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eridiff.registry import Registry
from tests.flows.project import Project, make_base, make_project
from tests.flows.service import ROOT, Service, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "sdxl")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service")) as running:
        running.deploy()
        running.start_worker()
        yield running


@pytest.fixture
def project(tmp_path: Path, base: Path) -> Project:
    return make_project(tmp_path / "project", base)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[str, Any]:
    """The LoRA of a run that nobody disturbed and no Prefect saw."""
    project = make_project(tmp_path_factory.mktemp("undisturbed") / "project", base)
    eridiff("run", str(project.recipe))
    return project.lora()


SLOW_S = 400
"""Patience with a machine that others use, too."""


def eridiff(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stages.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=check, capture_output=True, text=True)


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_a_deployment_runs_and_a_second_run_does_nothing(service: Service, project: Project) -> None:
    run = ["deployment", "run", "train-lora/manual", "-p", f"config={project.recipe}"]
    assert service.prefect(*run[:-1], "confg=x.yaml", check=False).returncode == 1
    service.prefect(*run, "--watch", "--watch-timeout", str(SLOW_S))
    assert project.lora()
    done = service.finished(service.run("train-lora/manual", config=str(project.recipe)))
    assert done["message"] == "Nothing to do: every stage is finished."
    artifacts = {found["key"] for found in service.post("/artifacts/filter", {})}
    assert artifacts >= {f"tiny-{what}" for what in ("buckets", "cache", "loss", "lora", "grid", "stages")}


@pytest.mark.parametrize(
    "parameters",
    [
        {"config": "x.yaml", "overrides": {"network": {"rnak": 4}}},
        {"config": "x.yaml", "overrides": {"train": {"steps": 0}}},
        {"config": "x.yaml", "overrides": {"train": {"steps": "many"}}},
        {"config": "x.yaml", "parts": 0},
        {"config": "x.yaml", "workers": "elsewhere"},
    ],
    ids=json.dumps,
)
def test_bad_parameters_are_refused_before_a_run_is_made(
    service: Service, parameters: dict[str, Any]
) -> None:
    asked_for = {"flows": {"name": {"any_": ["train-lora"]}}}  # the scheduler makes runs of other flows
    before = len(service.runs(**asked_for))
    assert service.refuses("train-lora/manual", **parameters)
    assert len(service.runs(**asked_for)) == before


def test_the_nightly_schedule_makes_runs(service: Service) -> None:
    nightly = service.get("/deployments/name/retrain/nightly")["id"]

    def scheduled() -> list[dict[str, Any]]:
        states = {"state": {"type": {"any_": ["SCHEDULED"]}}, "deployment_id": {"any_": [nightly]}}
        return service.runs(flow_runs=states)

    wait_for(lambda: len(scheduled()) >= 3, "scheduled runs", seconds=60)
    assert all("T02:00:00" in run["expected_start_time"] for run in scheduled())


def test_watching_a_folder_retrains_and_promotes(service: Service, project: Project) -> None:
    command = [
        sys.executable,
        "-m",
        "stages.cli",
        "watch",
        str(project.recipe),
        "--quiet",
        "1",
        "--every",
        "0.3",
    ]
    watcher = subprocess.Popen(command, cwd=ROOT, env=service.environment)
    registry = Registry(project.root / "registry", "tiny")
    try:
        wait_for(lambda: len(registry.history().versions) == 1, "the first verdict", seconds=SLOW_S)
        project.add_images(10, 4)
        wait_for(lambda: len(registry.history().versions) == 2, "the second verdict", seconds=SLOW_S)
    finally:
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(20) == 0
    first, second = registry.history().versions
    assert first.verdict.snapshot != second.verdict.snapshot
    assert (project.root / "served" / "tiny.safetensors").is_file()
    wait_for(lambda: not unfinished(service), "all runs", seconds=SLOW_S)
    told = {"filter": {"event": {"name": ["eridiff.lora.promoted", "eridiff.lora.rejected"]}}}
    wait_for(lambda: len(service.post("/events/filter", told)["events"]) == 2, "both events", seconds=20)


def unfinished(service: Service) -> list[dict[str, Any]]:
    return service.runs(flow_runs={"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}})


def test_a_worse_challenger_is_rejected_and_rollback_works(service: Service, project: Project) -> None:
    run = {"config": str(project.recipe)}
    registry = Registry(project.root / "registry", "tiny")
    assert service.finished(service.run("retrain/nightly", **run))["type"] == "COMPLETED"
    started = time.monotonic()
    same = service.finished(service.run("retrain/nightly", **run))
    assert same["message"].startswith("No change since version 1")
    assert time.monotonic() - started < 60
    project.add_images(10, 3)
    service.finished(service.run("retrain/nightly", **run, overrides={"publish": {"margin": 0.9}}))
    rejected = registry.history().versions[1]
    assert rejected.verdict.decision == "rejected"
    served = (project.root / "served" / "tiny.safetensors").read_bytes()
    eridiff("registry", "promote", "tiny", "2", "--registry", str(registry.root))
    assert (project.root / "served" / "tiny.safetensors").read_bytes() != served
    eridiff("registry", "rollback", "tiny", "--registry", str(registry.root))
    assert (project.root / "served" / "tiny.safetensors").read_bytes() == served


def test_of_two_nights_at_once_the_second_is_left_out(service: Service, project: Project) -> None:
    first = service.run("retrain/nightly", config=str(project.recipe))
    wait_for(lambda: service.state(first)["type"] == "RUNNING", "the first run", seconds=SLOW_S)
    second = service.finished(service.run("retrain/nightly", config=str(project.recipe)))
    assert second["type"] == "CANCELLED"
    assert service.finished(first)["message"].startswith("promoted")


def test_of_two_changes_at_once_the_second_waits(service: Service, project: Project) -> None:
    first = service.run("retrain/on-new-data", config=str(project.recipe))
    wait_for(lambda: service.state(first)["type"] == "RUNNING", "the first run", seconds=SLOW_S)
    second = service.run("retrain/on-new-data", config=str(project.recipe))
    wait_for(lambda: service.state(second)["name"] == "AwaitingConcurrencySlot", "its turn", seconds=SLOW_S)
    assert service.finished(first)["message"].startswith("promoted")
    assert service.finished(second)["message"].startswith("No change since version 1")


def test_a_worker_that_is_asked_to_stop_lets_its_run_save(service: Service, project: Project) -> None:
    service.started[-1].kill()
    service.started[-1].wait()
    command = [sys.executable, "-m", "stages.cli", "worker"]
    worker = subprocess.Popen(command, cwd=ROOT, env=service.environment)
    try:
        long = {"train": {"steps": 5000}, "save": {"save_every": 5000}}
        run = service.run("train-lora/manual", config=str(project.recipe), overrides=long)
        metrics = "runs/tiny/*/metrics.jsonl"
        wait_for(
            lambda: any(path.stat().st_size for path in project.root.glob(metrics)), "steps", seconds=SLOW_S
        )
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(90) == 0
    finally:
        worker.kill()
        service.start_worker()
    state = service.state(run)
    assert state["type"] == "CANCELLED"
    assert "everything is saved" in state["message"]
    assert list(project.root.glob("runs/tiny/*/checkpoints/step-*"))


def in_precompute(service: Service, project: Project, run: str) -> bool:
    return project.num_parts("latents") >= 2 and project.num_parts("text") < 3


def in_training(service: Service, project: Project, run: str) -> bool:
    return bool(list(project.root.glob("runs/tiny/*/checkpoints/step-000004")))


@pytest.mark.parametrize("moment", [in_precompute, in_training])
@pytest.mark.parametrize("victims", ["flow", "worker", "both", "server"])
def test_killed_at_any_place_a_new_run_finishes_with_the_same_result(
    service: Service,
    project: Project,
    undisturbed: dict[str, Any],
    moment: Callable[[Service, Project, str], bool],
    victims: str,
) -> None:
    run = service.run("train-lora/manual", config=str(project.recipe))
    wait_for(lambda: moment(service, project, run), f"{moment.__name__}", seconds=SLOW_S, every=0.05)
    flow = int(service.get(f"/flow_runs/{run}")["infrastructure_pid"])
    server, worker = service.started[0], service.started[-1]
    if victims in ("worker", "both"):
        worker.kill()
        worker.wait()
    if victims in ("flow", "both"):
        kill_tree(flow)
    if victims == "server":
        server.kill()
        server.wait()
        time.sleep(2)
        service.started[0] = service.start_server()
        service.started.pop()
    if victims in ("worker", "both"):
        wait_for(lambda: not alive(flow), "the orphaned flow", seconds=SLOW_S)
        service.start_worker()
    parts = project.num_parts("latents"), project.num_parts("text")
    again = service.finished(service.run("train-lora/manual", config=str(project.recipe)))
    assert again["type"] == "COMPLETED"
    assert_same(project.lora(), undisturbed)
    assert project.num_parts("latents") >= parts[0]
    assert project.num_parts("latents") == 10


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all below it, as Linux's /proc lists them."""
    children = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if parent_of(path) == pid]
    os.kill(pid, signal.SIGKILL)
    for child in children:
        kill_tree(child)


def parent_of(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()

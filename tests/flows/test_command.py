from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages import pipeline
from tests.flows.doubles import RECIPE
from tests.flows.project import Project, make_base, make_project
from tests.flows.service import ROOT, wait_for


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ([], {}),
        (["train.steps=7"], {"train": {"steps": 7}}),
        (["train.steps=7", "train.lr=1e-4"], {"train": {"steps": 7, "lr": 1e-4}}),
        (["train={steps: 7}"], {"train": {"steps": 7, "batch_size": 4}}),
        (["device=cpu"], {"device": "cpu"}),
        (["datasets.0.resolution=512"], {"datasets": [{"resolution": 512}]}),
    ],
)
def test_dotted_keys_become_sections(tmp_path: Path, settings: list[str], wanted: dict[str, Any]) -> None:
    from flows.command import nested
    from flows.overrides import RecipeOverrides, as_settings

    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    recipe = pipeline.load_recipe(path, settings)
    found = nested(recipe, [text.partition("=")[0] for text in settings])
    assert contains(found, wanted)
    given = as_settings(RecipeOverrides.model_validate(found))
    assert pipeline.load_recipe(path, given) == recipe


def contains(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return found.keys() >= wanted.keys() and all(contains(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(contains, found, wanted))
    return found == wanted


def start(project: Project, home: Path, *settings: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
    }
    for name in ("PREFECT_API_URL", "PREFECT_API_DATABASE_CONNECTION_URL"):
        environment.pop(name, None)
    chosen = [text for setting in settings for text in ("--set", setting)]
    command = [sys.executable, "-m", "flows.train_lora", str(project.recipe), *chosen]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stopped_it_saves_and_killed_it_leaves_no_server(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", make_base(tmp_path / "base"))
    long = ("train.steps=5000", "save.save_every=5000")

    def trains() -> bool:
        return any(path.stat().st_size for path in project.root.glob("runs/tiny/*/metrics.jsonl"))

    with start(project, tmp_path / "home", *long) as stopped:
        wait_for(trains, "steps", seconds=400)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(60) == 130
    assert list(project.root.glob("runs/tiny/*/checkpoints/step-*"))
    with start(project, tmp_path / "home", *long) as killed:
        wait_for(lambda: bool(children(killed.pid)), "its server", seconds=400)
        (server,) = children(killed.pid)
        killed.kill()
    wait_for(lambda: not Path(f"/proc/{server}").exists(), "the server's end", seconds=60)

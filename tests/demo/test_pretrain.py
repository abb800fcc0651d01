"""Pretraining as a whole: the jobs on a tiny scale, and what is done about jobs that fail."""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from eridiff import families
from eridiff.demo import denoiser_training, pretrain, sheet
from eridiff.demo.corpus import draw_corpus
from eridiff.demo.pretrain import CHANNELS, OPTIONS, Plan, make_base, make_vae, wait_for
from eridiff.demo.sheet import base_of


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining's folder with drawn scenes."""
    work = tmp_path_factory.mktemp("work")
    plan = make_plan(work)
    draw_corpus(plan.plain.folder, plan.plain.count, "plain", first_seed=0, processes=1)
    draw_corpus(plan.neon.folder, plan.neon.count, "neon", first_seed=100, processes=1)
    return work


def make_plan(work: Path) -> Plan:
    return Plan(
        families=("sdxl",),
        out=work / "out",
        work=work,
        scenes=16,
        batch=2,
        vae_batch=2,
        size="tiny",
        device="cpu",
        fast=False,
        seed=0,
        start=time.time(),
        seconds=3.0,
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pretrain, "_prepare", lambda plan: torch)
    monkeypatch.setattr(denoiser_training, "_TIMES", 64)
    monkeypatch.setattr(sheet, "PROMPTS", ("a red circle",))
    monkeypatch.setattr(sheet, "SEEDS", (1, 2))
    monkeypatch.setattr(sheet, "STEPS", 2)
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", families.names())
def test_a_base_comes_out_whole(name: str, scenes: Path, tmp_path: Path) -> None:
    plan = replace(make_plan(tmp_path), families=(name,))
    plan.out.mkdir()
    for corpus in ("plain", "neon"):
        (tmp_path / corpus).symlink_to(scenes / corpus)
    make_vae(plan, CHANNELS[name])
    make_base(plan, name)
    with tarfile.open(plan.out / f"demo-{name}.tar") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    base, family = tmp_path / "unpacked" / name, families.get(name, OPTIONS[name])
    device = torch.device("cpu")
    vae = family.load_vae(base_of(family, base), device=device, dtype=torch.float32)
    pixels = torch.from_numpy(plan.plain.pixels().copy()).permute(0, 3, 1, 2) / 127.5 - 1
    moments = family.encode_images(vae, pixels)
    mean, variance = family.latent.scaled(moments.mean), family.latent.scale**2 * moments.logvar.exp()
    assert float(mean.mean()) == pytest.approx(0, abs=0.05)
    assert float(mean.var() + variance.mean()) == pytest.approx(1, abs=0.1)
    denoiser = family.load_denoiser(base_of(family, base), device=device, dtype=torch.float32)
    assert all(weight.isfinite().all() for weight in denoiser.parameters())
    for picture in (f"sheet-{name}.png", f"vae-{CHANNELS[name]}.png"):
        with Image.open(plan.out / picture) as image:
            assert image.width > 128
    index = json.loads((base / "model_index.json").read_text())
    assert all(
        (base / part).is_dir() for part, entry in index.items() if isinstance(entry, list) and entry[0]
    )


class Job:
    """A process that ends at once."""

    def __init__(self, exitcode: int | None) -> None:
        self.exitcode = exitcode
        self.started = self.ended = False

    def start(self) -> None:
        self.started = True

    def join(self, timeout: float | None = None) -> None:
        if timeout is None and not self.ended:
            raise AssertionError("a job that never ends is waited for")

    def terminate(self) -> None:
        self.ended = True


def finish(plan: Plan, first: Job, again: Job | None = None) -> tuple[list[str], list[Plan]]:
    """What is told to have failed, and the plans of jobs that were started once more."""
    retried: list[Plan] = []

    def process(*, target: Any, args: tuple[Plan, str]) -> Job:
        assert again is not None, "started again"
        retried.append(args[0])
        return again

    jobs: dict[str, Any] = {"sdxl": (make_base, "sdxl")}
    return pretrain._finish(plan, jobs, {"sdxl": first}, SimpleNamespace(Process=process)), retried


def test_a_job_that_fails_early_is_tried_once_more_with_plain_kernels(tmp_path: Path) -> None:
    plan = replace(make_plan(tmp_path), fast=True, seconds=1000.0)
    assert finish(plan, Job(0)) == ([], [])
    again = Job(0)
    assert finish(plan, Job(1), again) == ([], [replace(plan, fast=False)])
    assert again.started
    assert finish(plan, Job(1), Job(1))[0] == ["sdxl"]


def test_a_job_is_not_tried_again_without_time_or_without_a_plainer_way(tmp_path: Path) -> None:
    plan = replace(make_plan(tmp_path), fast=True, seconds=1000.0)
    late = replace(plan, start=time.time() - 990)
    for hopeless in (late, replace(plan, fast=False)):
        assert finish(hopeless, Job(1)) == (["sdxl"], [])


def test_a_job_that_does_not_end_is_ended(tmp_path: Path) -> None:
    stuck = Job(None)
    plan = replace(make_plan(tmp_path), start=time.time() - 10_000)
    assert finish(plan, stuck) == (["sdxl"], [])
    assert stuck.ended


def test_waiting_ends_with_the_file_or_with_an_error(tmp_path: Path) -> None:
    wait_for(tmp_path, time.time() - 1)
    with pytest.raises(TimeoutError, match="absent"):
        wait_for(tmp_path / "absent", time.time() - 1)


def test_the_commands_words_become_a_plan(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--minutes", "2", "--family"]
    plan = pretrain._plan(pretrain._parser().parse_args([*words, "flux"]))
    assert (plan.families, plan.seconds, plan.work) == (("flux",), 120.0, tmp_path / "work")
    assert plan.fast == (plan.device == "cuda")
    every = pretrain._plan(pretrain._parser().parse_args([*words, "all"]))
    assert every.families == pretrain.FAMILIES

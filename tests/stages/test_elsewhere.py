"""The whole pipeline with `storage.data` on a server that speaks S3, beside the same on disk."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eridiff.encoding.spaces import latent_space, text_space, workspace
from eridiff.recipe import Recipe
from eridiff.store.parts import TensorStore
from eridiff.store.paths import sizes_in
from eridiff.store.remote import RemotePath
from stages import cli, pipeline, verify
from stages.dataset import current_snapshot
from stages.reclaim import Places, garbage
from stages.verify import Fault
from tests.flows.project import Project, make_base, make_project
from tests.s3 import BUCKET, CREDENTIALS, Server, s3_server

ROOT = Path(__file__).parents[2]
CACHE_BYTES = 60_000


@dataclass(frozen=True)
class Elsewhere:
    """A project, and the overrides that move its data to a server."""

    project: Project
    url: str
    server: Server
    cache: Path

    @property
    def settings(self) -> dict[str, Any]:
        """Short training, a small cache, and data elsewhere."""
        return {
            "train.steps": 3,
            "storage.data": self.url,
            "storage.cache": str(self.cache),
            "storage.cache_gb": CACHE_BYTES / 1e9,
            "storage.options": {"endpoint_url": self.server.url},
        }

    @property
    def recipe(self) -> Recipe:
        return pipeline.load_recipe(self.project.recipe, self.settings)

    @property
    def data(self) -> RemotePath:
        place = workspace(self.recipe).data
        assert isinstance(place, RemotePath)
        return place

    def command(self, *arguments: str) -> list[str]:
        """A command line on this recipe; the server is named by AWS's own variables."""
        changed = {key: value for key, value in self.settings.items() if key != "storage.options"}
        settings = [word for key, value in changed.items() for word in ("--set", f"{key}={value}")]
        return [sys.executable, "-m", "stages.cli", *arguments, str(self.project.recipe), *settings]

    def drop_copies(self) -> None:
        for path in (self.cache / "copies").iterdir():
            path.unlink()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server() as started, pytest.MonkeyPatch.context() as environment:
        for name, value in CREDENTIALS.items():
            environment.setenv(name, value)
        yield started


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "sdxl")


def make(root: Path, base: Path, server: Server) -> Elsewhere:
    project = make_project(root / "project", base, num_images=6)
    return Elsewhere(project, f"s3://{BUCKET}/{uuid.uuid4().hex}", server, root / "cache")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, base: Path, server: Server) -> Elsewhere:
    """A project with everything made but the evaluation, each stage with no copies to begin with."""
    elsewhere = make(tmp_path_factory.mktemp("elsewhere"), base, server)
    for stage in ("ingest", "precompute", "train"):
        pipeline.run_stage(stage, elsewhere.recipe)
        assert elsewhere.data.copies.nbytes() <= CACHE_BYTES
        elsewhere.drop_copies()
    return elsewhere


def contents(store: TensorStore) -> dict[str, dict[str, bytes]]:
    reader = store.open()
    return {
        key: {name: bytes(tensor.data) for name, tensor in reader.get(key).items()}
        for key in sorted(store.keys())
    }


def losses(project: Project) -> list[float]:
    (path,) = project.root.glob("runs/tiny/*/metrics.jsonl")
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


def test_a_pipeline_elsewhere_makes_what_one_on_disk_makes(
    made: Elsewhere, base: Path, tmp_path: Path
) -> None:
    disk = Project(tmp_path)
    settings = {
        "train.steps": 3,
        "storage": {"data": str(disk.root / "data"), "runs": str(disk.root / "runs")},
    }
    local = pipeline.load_recipe(made.project.recipe, settings)
    for stage in ("ingest", "precompute", "train"):
        pipeline.run_stage(stage, local)

    assert current_snapshot(made.recipe) == current_snapshot(local)
    for name, size in sizes_in(workspace(local).images).items():
        shard = made.data / "images" / name
        assert shard.read_bytes() == (disk.root / "data" / "images" / name).read_bytes()
        assert len(shard.read_bytes()) == size
    assert sizes_in(made.data / "images").keys() == sizes_in(workspace(local).images).keys()
    for space in (latent_space, text_space):
        there, here = space(made.recipe), space(local)
        assert there.digest == here.digest
        assert contents(there.store()) == contents(here.store())
    assert sizes_in(made.data / "spaces") == sizes_in(disk.root / "data" / "spaces")

    assert losses(made.project) == losses(disk)
    lora, wanted = made.project.lora(), disk.lora()
    assert lora.keys() == wanted.keys()
    assert all(lora[name].tobytes() == wanted[name].tobytes() for name in wanted)


LOOK = """
import sys, time
started = time.monotonic()
from stages import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as done:
    assert not done.code, done.code
heavy = {"torch", "diffusers", "transformers", "peft"} & set(sys.modules)
assert not heavy, heavy
print(time.monotonic() - started, file=sys.stderr)
"""


@pytest.mark.parametrize("command", ["plan", "status"])
def test_looking_takes_seconds_and_loads_no_tensor_library(made: Elsewhere, command: str) -> None:
    before = sorted(str(path) for path in made.data.files())
    words = made.command(command, "--json")
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *words[3:]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=made.server.environment,
        check=True,
    )
    rows = {row["stage"]: row for row in json.loads(done.stdout)}
    assert [rows[stage]["missing"] for stage in ("ingest", "precompute", "train")] == [0, 0, 0]
    assert float(done.stderr.split()[-1]) < 20  # 2 s on an idle machine
    assert sorted(str(path) for path in made.data.files()) == before


@pytest.mark.slow
def test_verify_names_what_is_damaged_elsewhere_and_precompute_mends_it(
    tmp_path: Path, base: Path, server: Server
) -> None:
    elsewhere = make(tmp_path, base, server)
    for stage in ("ingest", "precompute"):
        pipeline.run_stage(stage, elsewhere.recipe)
    whole = contents(latent_space(elsewhere.recipe).store())
    assert not faults(elsewhere)

    part = min(elsewhere.data.glob("latents/*/parts/*.safetensors"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    assert pipeline.stage("precompute").plan(elsewhere.recipe).complete  # its copy is whole
    (fault,) = faults(elsewhere)
    assert part.stem in fault.where
    assert pipeline.run_stage("precompute", elsewhere.recipe).done == 1
    assert contents(latent_space(elsewhere.recipe).store()) == whole
    assert not faults(elsewhere)


def faults(elsewhere: Elsewhere) -> list[Fault]:
    return verify.faults(places(elsewhere))


def places(elsewhere: Elsewhere) -> Places:
    recipe = elsewhere.recipe
    return Places(workspace(recipe), recipe.storage.registry)


@pytest.mark.slow
def test_gc_removes_elsewhere_what_nothing_leads_to(
    tmp_path: Path, base: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = make(tmp_path, base, server)
    for stage in ("ingest", "precompute"):
        pipeline.run_stage(stage, elsewhere.recipe)
    (elsewhere.project.images / "000.txt").write_text("another caption")
    for stage in ("ingest", "precompute"):
        pipeline.run_stage(stage, elsewhere.recipe)
    kept = contents(latent_space(elsewhere.recipe).store())
    before = {str(path) for path in elsewhere.data.files()}

    assert garbage(places(elsewhere), [elsewhere.recipe], old_runs=False, min_age_s=3600) == []
    assert {str(path) for path in elsewhere.data.files()} == before
    written_out = elsewhere.project.root / "whole.yaml"  # housekeeping takes no overrides
    written_out.write_text(json.dumps(elsewhere.recipe.model_dump(mode="json")))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["gc", str(written_out), "--hours", "0", "--delete", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {row["what"] for row in found} == {"snapshot", "text"}
    assert all(row["bytes"] > 0 for row in found)
    removed = before - {str(path) for path in elsewhere.data.files()}
    assert {Path(path).suffix for path in removed} == {".parquet", ".json", ".safetensors"}
    assert contents(latent_space(elsewhere.recipe).store()) == kept
    assert pipeline.stage("precompute").plan(elsewhere.recipe).complete


@pytest.mark.slow
def test_precompute_killed_at_any_moment_goes_on_to_the_same_items(
    made: Elsewhere, tmp_path: Path, base: Path, server: Server
) -> None:
    elsewhere = make(tmp_path, base, server)
    pipeline.run_stage("ingest", elsewhere.recipe)
    for parts_before_the_kill in (1, 4, 8):
        running = subprocess.Popen(
            elsewhere.command("precompute"), cwd=ROOT, env=server.environment, stderr=subprocess.DEVNULL
        )
        while running.poll() is None and num_indexes(elsewhere) < parts_before_the_kill:
            time.sleep(0.02)
        running.kill()
        running.wait()
        assert not faults(elsewhere)
    pipeline.run_stage("precompute", elsewhere.recipe)
    for space in (latent_space, text_space):
        assert contents(space(elsewhere.recipe).store()) == contents(space(made.recipe).store())


def num_indexes(elsewhere: Elsewhere) -> int:
    return len(list(elsewhere.data.glob("*/*/parts/*.parquet")))


@pytest.mark.slow
def test_evaluation_reads_elsewhere_too(made: Elsewhere) -> None:
    report = pipeline.run_stage("evaluate", made.recipe)
    assert report.done > 0
    assert pipeline.stage("evaluate").plan(made.recipe).complete

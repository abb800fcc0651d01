"""What precompute makes, and what it does not make again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eridiff.demo.architecture import save_random_base
from eridiff.encoding.spaces import latent_space, text_space
from eridiff.errors import DataError, Interrupted, ModelError, StoreError
from eridiff.families.base import Moments
from eridiff.families.flux import Flux
from eridiff.recipe import Recipe
from eridiff.store.parts import TensorStore
from stages import ingest, precompute
from stages.stage import StageReport
from tests.stages import kill_precompute

ROOT = Path(__file__).parents[2]
NUM_IMAGES = 6
PROMPTS = {"", "a prompt"}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux") / "base"
    save_random_base("flux", folder)
    return folder


def draw(folder: Path, number: int, *, seed: int | None = None) -> None:
    noise = np.random.default_rng(number if seed is None else seed)
    Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")


@pytest.fixture
def root(tmp_path: Path, tiny_base: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(NUM_IMAGES):
        draw(folder, number)
        (folder / f"{number}.txt").write_text(f"caption {number}")
    (tmp_path / "base").symlink_to(tiny_base)
    return tmp_path


def recipe(root: Path, **changes: Any) -> Recipe:
    sections = {
        "name": "test",
        "model": {"family": "flux", "base": str(root / "base"), "options": {"t5_length": 16}},
        "datasets": [{"folder_path": str(root / "folder"), "resolution": 64}],
        "precompute": {"part_samples": 2, "latent_batch_size": 2, "text_batch_size": 2},
        "sample": {"prompts": ["a prompt"]},
        "storage": {"data": str(root / "data"), "runs": str(root / "runs")},
        "device": "cpu",
    }
    return Recipe.model_validate(sections | changes)


def encoded(report: StageReport, before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """How many items each half made."""
    made = {kind: after[kind] - before[kind] for kind in after}
    assert report.done == sum(made.values())
    return made


def counts(chosen: Recipe) -> dict[str, int]:
    return {
        "latents": len(latent_space(chosen).store().keys()),
        "text": len(text_space(chosen).store().keys()),
    }


def make(chosen: Recipe) -> dict[str, int]:
    """Ingests and precomputes; returns what each half had to encode, foretold by the plan."""
    ingest.run(chosen)
    before, plan = counts(chosen), precompute.plan(chosen)
    report = precompute.run(chosen)
    made = encoded(report, before, counts(chosen))
    assert plan.missing == sum(made.values())
    assert precompute.plan(chosen).complete
    return made


def contents(store: TensorStore) -> dict[str, dict[str, tuple[str, tuple[int, ...], bytes]]]:
    reader = store.open()
    return {
        key: {name: (t.dtype, t.shape, bytes(t.data)) for name, t in reader.get(key).items()}
        for key in sorted(store.keys())
    }


def test_first_all_then_nothing(root: Path) -> None:
    chosen = recipe(root)
    ingest.run(chosen)
    plan = precompute.plan(chosen)
    assert (plan.done, plan.missing) == (0, 2 * NUM_IMAGES + 2)
    assert make(chosen) == {"latents": NUM_IMAGES, "text": NUM_IMAGES + len(PROMPTS)}
    report = precompute.run(chosen)
    assert (report.done, report.reused, report.bytes_written) == (0, 2 * NUM_IMAGES + 2, 0)


def test_the_plan_knows_the_bytes_of_latents(root: Path) -> None:
    chosen = recipe(root)
    ingest.run(chosen)
    planned = precompute.plan(chosen, half="latents").bytes_to_write
    assert planned == NUM_IMAGES * 2 * 16 * 8 * 8 * 4
    written = precompute.run(chosen, half="latents").bytes_written
    assert planned < written < planned + 6 * 8192  # headers and indexes


def test_an_edited_caption_is_one_text_and_no_latent(root: Path) -> None:
    chosen = recipe(root)
    make(chosen)
    (root / "folder" / "3.txt").write_text("an edited caption")
    assert make(chosen) == {"latents": 0, "text": 1}


def test_a_renamed_image_is_nothing(root: Path) -> None:
    chosen = recipe(root)
    make(chosen)
    for ending in ("png", "txt"):
        (root / "folder" / f"3.{ending}").rename(root / "folder" / f"renamed.{ending}")
    assert make(chosen) == {"latents": 0, "text": 0}


def test_edited_pixels_are_one_latent_and_no_text(root: Path) -> None:
    chosen = recipe(root)
    make(chosen)
    draw(root / "folder", 3, seed=99)
    assert make(chosen) == {"latents": 1, "text": 0}


def test_an_added_image_is_one_of_each(root: Path) -> None:
    chosen = recipe(root)
    make(chosen)
    draw(root / "folder", NUM_IMAGES)
    (root / "folder" / f"{NUM_IMAGES}.txt").write_text("one more")
    assert make(chosen) == {"latents": 1, "text": 1}


def test_another_vae_is_all_latents_and_no_text(root: Path, tmp_path: Path) -> None:
    make(recipe(root))
    other, copy = tmp_path / "other", tmp_path / "copy"
    save_random_base("flux", other, seed=1)
    shutil.copytree(root / "base", copy)
    shutil.rmtree(copy / "vae")
    shutil.copytree(other / "vae", copy / "vae")
    changed = recipe(root, model={"family": "flux", "base": str(copy), "options": {"t5_length": 16}})
    plan = precompute.plan(changed)
    assert plan.details["latents"] == f"{NUM_IMAGES} of {NUM_IMAGES} to encode, since weights changed"
    assert make(changed) == {"latents": NUM_IMAGES, "text": 0}


def test_new_images_are_no_change_of_encoder(root: Path) -> None:
    make(recipe(root))
    make(recipe(root, precompute={"text_dtype": "fp32"}))
    for number in range(NUM_IMAGES):
        draw(root / "folder", number, seed=50 + number)
        (root / "folder" / f"{number}.txt").write_text(f"other caption {number}")
    chosen = recipe(root, sample={})
    ingest.run(chosen)
    plan = precompute.plan(chosen)
    assert plan.details["latents"] == f"{NUM_IMAGES} of {NUM_IMAGES} to encode"
    assert "since" not in plan.details["text"]


def test_encoders_are_never_in_memory_together(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_vae, load_text, alive = Flux.load_vae, Flux.load_text_encoders, []

    def watched_vae(self: Flux, *place: Any, **options: Any) -> Any:
        vae = load_vae(self, *place, **options)
        alive.append(weakref.ref(vae))
        return vae

    def watched_text(self: Flux, *place: Any, **options: Any) -> Any:
        assert [reference() for reference in alive] == [None]
        encoders = load_text(self, *place, **options)
        alive.extend(weakref.ref(encoder.model) for encoder in encoders)
        return encoders

    monkeypatch.setattr(Flux, "load_vae", watched_vae)
    monkeypatch.setattr(Flux, "load_text_encoders", watched_text)
    make(recipe(root))
    assert [reference() for reference in alive] == [None, None, None]


def test_a_full_disk_leaves_nothing_to_be_trusted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any, header: bytes, *_rest: Any) -> None:
        file.write(header)
        raise OSError(errno.ENOSPC, "No space left on device")

    chosen = recipe(root)
    ingest.run(chosen)
    monkeypatch.setattr("eridiff.store.partfolder.write_tensors", full)
    with pytest.raises(StoreError, match="disk is full") as caught:
        precompute.run(chosen)
    assert caught.value.exit_code == 4
    assert counts(chosen) == {"latents": 0, "text": 0}
    assert list((latent_space(chosen).store().folder / "parts").iterdir()) == []
    monkeypatch.undo()
    assert precompute.run(chosen).done == 2 * NUM_IMAGES + 2


def test_halves_need_nothing_of_each_other(root: Path, tiny_base: Path) -> None:
    for half, needed in (
        ("latents", ["vae"]),
        ("text", ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]),
    ):
        (root / "base").unlink(missing_ok=True)
        shutil.rmtree(root / half, ignore_errors=True)
        base = root / half
        shutil.copytree(tiny_base, base)
        for folder in base.iterdir():
            if (
                folder.is_dir()
                and folder.name.startswith(("vae", "text", "token"))
                and folder.name not in needed
            ):
                shutil.rmtree(folder)
        chosen = recipe(root, model={"family": "flux", "base": str(base), "options": {"t5_length": 16}})
        ingest.run(chosen)
        report = precompute.run(chosen, half=half)
        assert report.done > 0
        with pytest.raises(ModelError):
            precompute.run(chosen)


def test_encoders_may_be_deleted_afterwards(root: Path, tiny_base: Path) -> None:
    base = root / "own"
    shutil.copytree(tiny_base, base)
    chosen = recipe(root, model={"family": "flux", "base": str(base), "options": {"t5_length": 16}})
    make(chosen)
    for name in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.rmtree(base / name)
    assert precompute.plan(chosen).complete
    assert precompute.run(chosen).done == 0
    (root / "folder" / "0.txt").write_text("an edited caption")
    ingest.run(chosen)
    with pytest.raises(ModelError, match=r"text_encoder|tokenizer"):
        precompute.run(chosen)


def test_parts_make_together_what_one_run_makes(root: Path) -> None:
    chosen = recipe(root)
    ingest.run(chosen)
    reports = [
        precompute.run(chosen, half=half, part=(index, 3))
        for half in ("text", "latents")
        for index in (3, 1, 2)
    ]
    assert sum(report.done for report in reports) == 2 * NUM_IMAGES + 2
    assert precompute.plan(chosen).complete
    assert precompute.run(chosen).done == 0


def test_a_flipped_byte_is_found_and_made_again(root: Path) -> None:
    chosen = recipe(root)
    make(chosen)
    store = latent_space(chosen).store()
    before = contents(store)
    path = sorted((store.folder / "parts").glob("*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    (damage,) = latent_space(chosen).store().verify()
    plan = precompute.plan(chosen)
    assert plan.missing == 1
    assert precompute.run(chosen).done == 1
    after = contents(latent_space(chosen).store())
    assert after.keys() == before.keys()
    assert {key for key in before if after[key] != before[key]} <= {damage.key}
    assert latent_space(chosen).store().verify() == []


def test_without_ingest_there_is_a_plan_and_no_run(root: Path) -> None:
    chosen = recipe(root)
    plan = precompute.plan(chosen)
    assert plan.missing == len(PROMPTS)
    assert plan.details["images"] == "not ingested yet"
    with pytest.raises(DataError, match="not been ingested"):
        precompute.run(chosen)


def test_what_cannot_be_encoded_is_quarantined(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_nan(monkeypatch, num_bad=1)
    chosen = recipe(root, ingest={"max_quarantine": 0.2})
    ingest.run(chosen)
    report = precompute.run(chosen, half="latents")
    assert (report.done, report.quarantined) == (NUM_IMAGES - 1, 1)
    plan = precompute.plan(chosen, half="latents")
    assert (plan.missing, plan.quarantined, plan.done) == (0, 1, NUM_IMAGES - 1)
    again = precompute.run(chosen, half="latents")
    assert (again.done, again.reused, again.quarantined) == (0, NUM_IMAGES - 1, 1)


def test_too_much_quarantine_stops(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_nan(monkeypatch, num_bad=2)
    chosen = recipe(root, ingest={"max_quarantine": 0.2})
    ingest.run(chosen)
    for _ in range(2):  # and a second run does not take it for finished
        with pytest.raises(DataError, match="Too many latents") as caught:
            precompute.run(chosen, half="latents")
        assert "not finite" in str(caught.value)
        assert caught.value.exit_code == 3


def test_parts_share_the_limit_of_the_quarantine(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe(root, ingest={"max_quarantine": 0.2})
    ingest.run(chosen)
    make_nan(monkeypatch, num_bad=1)
    assert precompute.run(chosen, half="latents", part=(1, 2)).quarantined == 1
    monkeypatch.undo()
    make_nan(monkeypatch, num_bad=1)
    with pytest.raises(DataError, match="Too many latents"):
        precompute.run(chosen, half="latents", part=(2, 2))


def make_nan(monkeypatch: pytest.MonkeyPatch, *, num_bad: int) -> None:
    honest, left = Flux.encode_images, [num_bad]

    def some_are_nan(self: Flux, vae: Any, pixels: Any) -> Moments:
        made = honest(self, vae, pixels)
        for row in range(min(left[0], len(made.mean))):
            made.mean[row] = float("nan")
            left[0] -= 1
        return made

    monkeypatch.setattr(Flux, "encode_images", some_are_nan)


def test_a_request_to_stop_keeps_what_is_finished(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Flux.encode_images

    def stopped(self: Flux, vae: Any, pixels: Any) -> Moments:
        os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, vae, pixels)

    chosen = recipe(root)
    ingest.run(chosen)
    monkeypatch.setattr(Flux, "encode_images", stopped)
    with pytest.raises(Interrupted, match="4 of 6 latents are left") as caught:
        precompute.run(chosen, half="latents")
    assert caught.value.exit_code == 130
    monkeypatch.undo()
    assert precompute.run(chosen, half="latents").done == 4


LOOK = """
import json, sys
from pathlib import Path
from stages import pipeline, precompute
recipe = pipeline.load_recipe(Path(sys.argv[1]))
plan, report = precompute.plan(recipe), precompute.run(recipe)
loaded = sorted({"torch", "diffusers", "transformers"} & set(sys.modules))
print(json.dumps([plan.missing, report.done, loaded]))
"""


def write_recipe(chosen: Recipe, path: Path) -> Path:
    path.write_text(chosen.model_dump_json(exclude_none=True))  # YAML reads JSON
    return path


def test_a_finished_recipe_loads_no_tensor_library(root: Path) -> None:
    chosen = recipe(root)
    make(chosen)
    path = write_recipe(chosen, root / "recipe.yaml")
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert json.loads(done.stdout) == [0, 0, []]


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(root: Path) -> None:
    for number in range(NUM_IMAGES, 40):
        draw(root / "folder", number)
        (root / "folder" / f"{number}.txt").write_text(f"caption {number}")
    chosen = recipe(root)
    calm = recipe(root, storage={"data": str(root / "calm"), "runs": str(root / "runs")})
    ingest.run(chosen)
    ingest.run(calm)
    paths = [write_recipe(calm, root / "calm.yaml"), write_recipe(chosen, root / "recipe.yaml")]
    done = subprocess.run(
        [sys.executable, kill_precompute.__file__, *map(str, paths), "20"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr
    precompute.run(chosen)
    for space in (latent_space, text_space):
        assert contents(space(chosen).store()) == contents(space(calm).store())

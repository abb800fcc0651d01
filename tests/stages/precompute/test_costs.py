"""What precompute makes, and what it does not make again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from eridiff.demo.architecture import save_random_base
from eridiff.errors import ModelError
from eridiff.families.flux import Flux
from stages import ingest, precompute
from tests.stages.precompute.folder import NUM_IMAGES, PROMPTS, draw, make, recipe, write_recipe

ROOT = Path(__file__).parents[3]


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


LOOK = """
import json, sys
from pathlib import Path
from stages import pipeline, precompute
recipe = pipeline.load_recipe(Path(sys.argv[1]))
plan, report = precompute.plan(recipe), precompute.run(recipe)
loaded = sorted({"torch", "diffusers", "transformers"} & set(sys.modules))
print(json.dumps([plan.missing, report.done, loaded]))
"""


def test_a_finished_recipe_loads_no_tensor_library(root: Path) -> None:
    chosen = recipe(root)
    make(chosen)
    path = write_recipe(chosen, root / "recipe.yaml")
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert json.loads(done.stdout) == [0, 0, []]

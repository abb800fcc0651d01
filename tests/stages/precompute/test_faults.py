"""What a full disk, a damaged byte, an image that cannot be encoded, a signal or a kill leaves."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eridiff.encoding.spaces import latent_space, text_space
from eridiff.errors import DataError, Interrupted, StoreError
from eridiff.families.base import Moments
from eridiff.families.flux import Flux
from stages import ingest, precompute
from tests.stages.precompute import kill
from tests.stages.precompute.folder import (
    NUM_IMAGES,
    PROMPTS,
    contents,
    counts,
    draw,
    make,
    recipe,
    write_recipe,
)

ROOT = Path(__file__).parents[3]


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
        [sys.executable, kill.__file__, *map(str, paths), "20"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr
    precompute.run(chosen)
    for space in (latent_space, text_space):
        assert contents(space(chosen).store()) == contents(space(calm).store())

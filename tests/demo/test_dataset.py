"""The built-in dataset: named by a recipe, drawn by ingest, and never touched again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eridiff.demo import dataset
from eridiff.demo.dataset import NEON, NUM_IMAGES, ensure, folder_of, is_begun, num_undrawn
from eridiff.demo.scenes import held_out
from eridiff.demo.style import score
from eridiff.demo.vocabulary import COLORS, SHAPES, TRIGGER
from eridiff.errors import DataError, StoreError
from eridiff.recipe import Recipe
from stages import ingest
from stages.dataset import current_snapshot, dataset_key

NEON_PATH = Path(NEON)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all of it; only read."""
    data = tmp_path_factory.mktemp("data")
    assert ensure(NEON_PATH, data) == NUM_IMAGES
    return folder_of(NEON_PATH, data)


def make_recipe(tmp_path: Path, *datasets: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "trigger_word": f"{TRIGGER} style",
            "model": {"family": "sdxl", "base": "nowhere"},
            "datasets": [{"folder_path": NEON, "resolution": 128}, *datasets],
            "ingest": {"holdout": 0.1},
            "storage": {"data": tmp_path / "data", "runs": tmp_path / "runs"},
        }
    )


def test_there_are_48_captioned_images_in_the_second_style(drawn: Path) -> None:
    images, captions = sorted(drawn.glob("*.png")), sorted(drawn.glob("*.txt"))
    assert len(images) == NUM_IMAGES == 48
    assert [path.stem for path in images] == [path.stem for path in captions]
    assert len({path.read_bytes() for path in images}) == NUM_IMAGES
    for path in images:
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((128, 128), "RGB")
            assert score(image) > 0.95


def test_captions_show_all_colours_and_shapes_but_not_the_held_out_pairs(drawn: Path) -> None:
    captions = [path.read_text(encoding="utf-8") for path in drawn.glob("*.txt")]
    seen = {
        (color, shape)
        for color in COLORS
        for shape in SHAPES
        if any(f"{color} {shape}" in caption for caption in captions)
    }
    assert {color for color, _ in seen} == set(COLORS)
    assert {shape for _, shape in seen} == set(SHAPES)
    assert not any(held_out(*pair) for pair in seen)
    assert not any(TRIGGER in caption for caption in captions)


def test_the_same_bytes_everywhere_and_nothing_to_do_the_second_time(drawn: Path, tmp_path: Path) -> None:
    assert ensure(NEON_PATH, tmp_path) == NUM_IMAGES
    folder = folder_of(NEON_PATH, tmp_path)
    before = contents(folder)
    assert before == contents(drawn)
    assert ensure(NEON_PATH, tmp_path) == num_undrawn(NEON_PATH, tmp_path) == 0
    assert contents(folder) == before


def test_what_is_there_stays_and_what_is_missing_is_drawn(drawn: Path, tmp_path: Path) -> None:
    folder = folder_of(NEON_PATH, tmp_path)
    folder.mkdir(parents=True)
    (folder / "neon-00.txt").write_text("a word of mine")
    (folder / "neon-01.png").write_bytes(b"mine, too")
    assert num_undrawn(NEON_PATH, tmp_path) == NUM_IMAGES - 1
    assert is_begun(NEON_PATH, tmp_path)
    ensure(NEON_PATH, tmp_path)
    mine = {"neon-00.txt": b"a word of mine", "neon-01.png": b"mine, too"}
    assert contents(folder) == contents(drawn) | mine


def test_a_full_disk_leaves_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = dataset.draw

    class Full:
        def save(self, path: Path, kind: str) -> None:
            path.write_bytes(b"half")
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(dataset, "draw", lambda scene, style: Full())
    with pytest.raises(StoreError, match="full"):
        ensure(NEON_PATH, tmp_path)
    folder = folder_of(NEON_PATH, tmp_path)
    assert [path.name for path in folder.iterdir()] == ["neon-00.txt"]
    assert not is_begun(NEON_PATH, tmp_path)
    monkeypatch.setattr(dataset, "draw", real)
    assert ensure(NEON_PATH, tmp_path) == NUM_IMAGES


def test_other_datasets_are_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert folder_of(mine, tmp_path) == mine
    assert ensure(mine, tmp_path) == num_undrawn(mine, tmp_path) == 0
    assert is_begun(mine, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_built_in_dataset_is_refused_with_the_one_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=NEON) as caught:
        folder_of(Path("builtin:demo-noir"), tmp_path)
    assert caught.value.exit_code == 3


def test_plan_draws_nothing_and_ingest_draws_all(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    plan = ingest.plan(recipe)
    assert (plan.done, plan.missing) == (0, NUM_IMAGES)
    assert plan.details["images to draw"] == NUM_IMAGES
    assert not list(tmp_path.iterdir())
    report = ingest.run(recipe)
    assert (report.done, report.quarantined) == (NUM_IMAGES, 0)
    assert ingest.plan(recipe).complete
    snapshot = current_snapshot(recipe)
    assert 0 < len(snapshot.holdout) < NUM_IMAGES // 4
    assert all(caption.startswith(f"{TRIGGER} style, ") for s in snapshot.samples for caption in s.captions)
    again = ingest.run(recipe)
    assert (again.done, again.reused) == (0, NUM_IMAGES)


def test_a_deleted_image_is_drawn_again_and_plan_says_so(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    ingest.run(recipe)
    before = current_snapshot(recipe)
    (folder_of(NEON_PATH, recipe.storage.data) / "neon-07.png").unlink()
    assert (ingest.plan(recipe).done, ingest.plan(recipe).missing) == (NUM_IMAGES - 1, 1)
    ingest.run(recipe)
    assert current_snapshot(recipe).id == before.id


def test_beside_images_of_the_user(tmp_path: Path, drawn: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for ending in ("png", "txt"):
        (mine / f"a.{ending}").write_bytes((drawn / f"neon-03.{ending}").read_bytes())
    recipe = make_recipe(tmp_path, {"folder_path": str(mine), "resolution": 64})
    plan = ingest.plan(recipe)
    assert (plan.done, plan.missing) == (0, NUM_IMAGES + 1)
    assert ingest.run(recipe).done == NUM_IMAGES + 1


def test_the_key_does_not_depend_on_where_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path)
    before = dataset_key(recipe)
    monkeypatch.chdir(tmp_path)
    assert dataset_key(recipe) == before

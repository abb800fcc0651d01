"""What bad input says, and what a full disk, a signal or a kill leaves."""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eridiff.errors import DataError, Interrupted, RecipeError, StoreError
from eridiff.recipe import Recipe
from stages import ingest
from stages.dataset import current_snapshot
from tests.stages.ingest.folder import add, everything, jpeg, make_recipe, write

BAD = {
    "empty.jpg": b"",
    "cut.jpg": jpeg(50)[:-300],
    "words.png": b"not an image",
    "wide.bmp": b"",
    "latin.txt": "Größe".encode("latin-1"),
}


def test_bad_files_are_left_out_with_reasons(tmp_path: Path, images: Path) -> None:
    for name, data in BAD.items():
        write(images / name, data)
    Image.new("1", (30_000, 4)).save(images / "wide.bmp")
    write(images / "latin.jpg", jpeg(51))
    write(images / "silent.jpg", jpeg(52))
    (images / "gone.jpg").symlink_to(images / "nowhere")
    (images / "below" / "circle").symlink_to(images)
    recipe = make_recipe(tmp_path, ingest={"max_quarantine": 0.5})
    before = everything(images)
    report = ingest.run(recipe)
    assert report.quarantined == 8
    snapshot = current_snapshot(recipe)
    reasons = {Path(entry.source).name: entry.reason for entry in snapshot.quarantined}
    assert reasons.pop("empty.jpg") == "the file is empty"
    assert "truncated" in reasons.pop("cut.jpg")
    assert reasons.pop("words.png").startswith("not a jpg, png")
    assert reasons.pop("wide.bmp") == "30000 x 4 px is longer than ingest.max_side_px, 20000"
    assert "UTF-8" in reasons.pop("latin.jpg")
    assert "no caption file" in reasons.pop("silent.jpg")
    assert "No such file" in reasons.pop("gone.jpg")
    assert "link" in reasons.pop("circle")
    assert not reasons
    assert len(snapshot.samples) == 24
    assert everything(images) == before


def test_too_many_bad_files_stop_the_stage(recipe: Recipe, images: Path) -> None:
    for index in range(4):
        write(images / f"bad{index}.jpg", b"")
    with pytest.raises(DataError) as raised:
        ingest.run(recipe)
    assert raised.value.exit_code == 3
    assert "4 of 28" in str(raised.value)
    assert "the file is empty" in str(raised.value)
    assert "max_quarantine" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"dataset": {"folder_path": Path("/nowhere/at/all")}}, DataError, "missing"),
        ({"dataset": {"caption_ext": ["json"]}}, DataError, "No image has a caption"),
        ({"ingest": {"holdout": 1.0}}, DataError, "held out"),
        ({"ingest": {"bucket_step": 128}}, RecipeError, "bucket_step"),
    ],
)
def test_unusable_recipes_say_why(
    tmp_path: Path, images: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as raised:
        ingest.run(make_recipe(tmp_path, **changes))
    assert words in str(raised.value)


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="no images"):
        ingest.run(make_recipe(tmp_path))
    assert not (tmp_path / "data").exists()


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Files can only grow to so many bytes: writes fail half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(
    tmp_path: Path, images: Path, small_disk: Callable[[int], None]
) -> None:
    write(images / "00.jpg", jpeg(0, 600, 600) + bytes(100_000))
    recipe = make_recipe(tmp_path)
    small_disk(60_000)
    with pytest.raises(StoreError) as raised:
        ingest.run(recipe)
    assert raised.value.exit_code == 4
    assert "full" in str(raised.value)
    small_disk(resource.RLIM_INFINITY)
    assert not list(recipe.storage.data.rglob("*.tmp"))
    assert not list(recipe.storage.data.rglob("current.json"))
    ingest.run(recipe)
    after = everything(recipe.storage.data)
    shutil.rmtree(recipe.storage.data)
    ingest.run(recipe)
    assert everything(recipe.storage.data) == after


def test_a_signal_keeps_what_was_read(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    real = ingest.scan

    def scan_and_be_stopped(work: Any) -> Generator[Any]:
        for count, found in enumerate(real(work)):
            if count == 10:
                signal.raise_signal(signal.SIGTERM)
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "scan", scan_and_be_stopped)
        with pytest.raises(Interrupted) as raised:
            ingest.run(recipe)
    assert raised.value.exit_code == 130
    reads.clear()
    assert ingest.run(recipe).done == 24
    assert len(reads) == 2 * 24 - 11


def _ingest(recipe: Recipe) -> None:
    ingest.run(recipe)


@pytest.mark.slow
def test_killed_anywhere_and_run_again_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    for index in range(60):
        add(tmp_path / "images", f"{index:02d}", index, f"thing {index}")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["stages.ingest"])
    straight = make_recipe(tmp_path, storage={"data": tmp_path / "straight", "runs": tmp_path / "runs"})
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        whole = processes.Process(target=_ingest, args=(straight,))
        whole.start()
        whole.join()
        seconds.append(time.monotonic() - started)
        assert whole.exitcode == 0
        wanted = everything(tmp_path / "straight")
        shutil.rmtree(tmp_path / "straight")
    chance = random.Random(0)
    killed = 0
    for trial in range(20):
        data = tmp_path / f"data{trial}"
        recipe = make_recipe(tmp_path, storage={"data": data, "runs": tmp_path / "runs"})
        process = processes.Process(target=_ingest, args=(recipe,))
        process.start()
        process.join(chance.uniform(0, min(seconds)))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        for path in data.rglob("*.tar"):
            assert everything(data)[str(path.relative_to(data))] == wanted[str(path.relative_to(data))]
        ingest.run(recipe)
        assert everything(data) == wanted
    assert killed >= 10

"""The whole stage on small folders: what a change costs, what bad input says, what a kill leaves."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eridiff.errors import DataError, Interrupted, RecipeError, StoreError
from eridiff.images import scan as scanning
from eridiff.images import shards as packing
from eridiff.images.decode import decode_rgb, resize_and_crop
from eridiff.images.shards import read_images
from eridiff.recipe import Recipe
from eridiff.store.snapshots import diff
from stages import ingest
from stages.dataset import current_snapshot, workspace


def jpeg(seed: int, width: int = 64, height: int = 48) -> bytes:
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(cells).resize((width, height)).save(file, "JPEG")
    return file.getvalue()


def write(path: Path, data: bytes) -> None:
    """A file whose time can be believed at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (1_600_000_000.25 + len(data), 1_600_000_000.25))


def add(folder: Path, name: str, seed: int, caption: str | None = "a thing") -> None:
    write(folder / f"{name}.jpg", jpeg(seed))
    if caption is not None:
        write(folder / f"{name}.txt", caption.encode())


def make_recipe(tmp_path: Path, **changes: Any) -> Recipe:
    dataset = {"folder_path": tmp_path / "images", "resolution": 64} | changes.pop("dataset", {})
    settings = {"bucket_step": 16, "shard_samples": 4, "holdout": 0.1} | changes.pop("ingest", {})
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"family": "sdxl", "base": "nowhere"},
            "datasets": [dataset],
            "ingest": settings,
            "storage": {"data": tmp_path / "data", "runs": tmp_path / "runs"},
        }
        | changes
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for index in range(24):
        add(tmp_path / "images", f"{'below/' if index % 3 else ''}{index:02d}", index, f"thing {index}")
    return tmp_path / "images"


@pytest.fixture
def recipe(tmp_path: Path, images: Path) -> Recipe:
    return make_recipe(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the user's files that are scanned."""
    seen: list[str] = []
    real = scanning.read_source

    def read(source: Any) -> bytes:
        seen.append(Path(source.name).name)
        return real(source)

    monkeypatch.setattr(scanning, "read_source", read)
    return seen


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are written."""
    seen: list[str] = []
    real = ingest.write_shard

    def pack(path: Path, shard: packing.Shard) -> int:
        seen.append(shard.name)
        return real(path, shard)

    monkeypatch.setattr(ingest, "write_shard", pack)
    return seen


def everything(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".tmp")
    }


def test_images_become_shards_and_a_snapshot(recipe: Recipe, images: Path) -> None:
    report = ingest.run(recipe)
    assert (report.done, report.reused, report.quarantined) == (24, 0, 0)
    snapshot = current_snapshot(recipe)
    assert Path(report.outputs["snapshot"]).stem == snapshot.id
    assert len(snapshot.samples) == 24
    stored = dict(read_images(workspace(recipe).images, snapshot.samples))
    for sample, data in stored.items():
        path = Path(sample.source)
        assert path.read_bytes() == data
        assert sample.captions == (path.with_suffix(".txt").read_text(),)
        assert sample.sample_id == f"{sample.content[:20]}-{sample.bucket_width}x{sample.bucket_height}"
        pixels = resize_and_crop(decode_rgb(data), sample)
        assert pixels.size == (sample.bucket_width, sample.bucket_height)
    assert sum(path.stat().st_size for path in workspace(recipe).images.iterdir()) == report.bytes_written


def test_the_bucket_report_lies_beside_the_snapshot(recipe: Recipe) -> None:
    report = ingest.run(recipe)
    told = json.loads(Path(report.outputs["buckets"]).read_text())
    assert Path(report.outputs["buckets"]).parent == Path(report.outputs["snapshot"]).parent
    assert sum(row["images"] + row["held_out"] for row in told["buckets"]) == 24
    assert told["buckets"][0].keys() >= {"width", "height", "mean_crop_loss", "enlarged"}


def test_a_second_run_looks_at_states_only(recipe: Recipe, reads: list[str], packs: list[str]) -> None:
    assert ingest.plan(recipe).missing == 24
    first = ingest.run(recipe)
    before = everything(recipe.storage.data)
    reads.clear(), packs.clear()
    assert ingest.plan(recipe).complete
    second = ingest.run(recipe)
    assert (second.done, second.reused, second.bytes_written) == (0, 24, 0)
    assert reads == packs == []
    assert second.outputs == first.outputs
    assert everything(recipe.storage.data) == before


def test_a_plan_touches_nothing(recipe: Recipe) -> None:
    planned = ingest.plan(recipe)
    assert planned.bytes_to_write > 0
    assert planned.details == {"images to read": 24, "captions to read": 24}
    assert not recipe.storage.data.exists()


def test_one_more_image_costs_one(recipe: Recipe, images: Path, reads: list[str], packs: list[str]) -> None:
    ingest.run(recipe)
    before = current_snapshot(recipe)
    reads.clear(), packs.clear()
    add(images, "new", 99)
    assert ingest.plan(recipe).missing == 1
    report = ingest.run(recipe)
    assert (report.done, report.reused) == (1, 24)
    assert sorted(reads) == ["new.jpg", "new.txt"]
    changes = diff(before, current_snapshot(recipe))
    assert (len(changes.added), changes.edited, changes.removed) == (1, (), ())
    by_name = {sample.shard for sample in current_snapshot(recipe).samples}
    assert len(packs) <= 2
    assert {path.name for path in workspace(recipe).images.iterdir()} == by_name


def test_an_edited_caption_costs_one(
    recipe: Recipe, images: Path, reads: list[str], packs: list[str]
) -> None:
    ingest.run(recipe)
    reads.clear(), packs.clear()
    write(images / "00.txt", b"another thing")
    report = ingest.run(recipe)
    assert (report.done, report.reused) == (1, 23)
    assert reads == ["00.txt"]
    assert len(packs) == 1


def test_edited_pixels_cost_one(recipe: Recipe, images: Path, reads: list[str]) -> None:
    ingest.run(recipe)
    reads.clear()
    write(images / "00.jpg", jpeg(1000))
    report = ingest.run(recipe)
    assert (report.done, report.reused) == (1, 23)
    assert reads == ["00.jpg"]


def test_a_renamed_image_is_no_new_sample(recipe: Recipe, images: Path, packs: list[str]) -> None:
    ingest.run(recipe)
    before = current_snapshot(recipe)
    packs.clear()
    for ending in ("jpg", "txt"):
        (images / f"00.{ending}").rename(images / "below" / f"renamed.{ending}")
    report = ingest.run(recipe)
    after = current_snapshot(recipe)
    assert (report.done, packs, after.id) == (0, [], before.id)
    assert any(sample.source.endswith("below/renamed.jpg") for sample in after.samples)


def test_a_removed_image_costs_no_reading(recipe: Recipe, images: Path, reads: list[str]) -> None:
    ingest.run(recipe)
    reads.clear()
    (images / "00.jpg").unlink()
    assert ingest.plan(recipe).details["removed"] == 1
    report = ingest.run(recipe)
    assert (report.done, report.reused, reads) == (0, 23, [])
    assert len(current_snapshot(recipe).samples) == 23


def test_the_recipe_changes_samples_not_shards(
    tmp_path: Path, recipe: Recipe, reads: list[str], packs: list[str]
) -> None:
    ingest.run(recipe)
    reads.clear(), packs.clear()
    changed = make_recipe(
        tmp_path, trigger_word="sks", dataset={"resolution": 96, "num_repeats": 3, "flip_x": True}
    )
    report = ingest.run(changed)
    assert (report.done, report.bytes_written, reads, packs) == (24, 0, [], [])
    sample = current_snapshot(changed).samples[0]
    assert (sample.repeats, sample.flip, sample.captions[0][:5]) == (3, True, "sks, ")
    assert current_snapshot(recipe).samples[0].repeats == 1


def test_superseded_shards_go_once_no_dataset_names_them(
    tmp_path: Path, recipe: Recipe, images: Path
) -> None:
    other = make_recipe(tmp_path, trigger_word="sks")
    ingest.run(recipe)
    ingest.run(other)
    shards = {path.name for path in workspace(recipe).images.iterdir()}
    write(images / "00.txt", b"another thing")
    ingest.run(recipe)
    assert len({path.name for path in workspace(recipe).images.iterdir()}) == len(shards) + 1
    list(read_images(workspace(other).images, current_snapshot(other).samples))
    ingest.run(other)
    assert len({path.name for path in workspace(recipe).images.iterdir()}) == len(shards)


def test_the_hold_out_never_moves(tmp_path: Path, images: Path) -> None:
    recipe = make_recipe(tmp_path, ingest={"holdout": 0.3})
    ingest.run(recipe)
    before = {sample.content: sample.split for sample in current_snapshot(recipe).samples}
    for seed in range(200, 230):
        add(images, f"more{seed}", seed)
    ingest.run(recipe)
    after = {sample.content: sample.split for sample in current_snapshot(recipe).samples}
    assert before.items() <= after.items()
    assert {"train", "holdout"} == set(before.values())


def test_equal_images_are_both_kept(recipe: Recipe, images: Path) -> None:
    for name in ("copy", "copy of copy"):
        add(images, name, 0, "thing 0")
    add(images, "other words", 0, "something else")
    ingest.run(recipe)
    samples = current_snapshot(recipe).samples
    assert len(samples) == 27
    assert sorted(sample.sample_id.partition(".")[2] for sample in samples)[-3:] == ["1", "2", "3"]
    assert len(list(read_images(workspace(recipe).images, samples))) == 27


def test_missing_shards_are_made_again(recipe: Recipe) -> None:
    ingest.run(recipe)
    before = everything(recipe.storage.data)
    first, second, *_ = sorted(workspace(recipe).images.iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-512])
    planned = ingest.plan(recipe)
    assert planned.missing > 0
    assert ingest.run(recipe).done == planned.missing
    assert everything(recipe.storage.data) == before


def test_a_damaged_snapshot_is_made_again(recipe: Recipe) -> None:
    snapshot = Path(ingest.run(recipe).outputs["snapshot"])
    before = everything(recipe.storage.data)
    snapshot.write_bytes(b"torn")
    ingest.run(recipe)
    assert everything(recipe.storage.data) == before


def test_tars_are_datasets_too(tmp_path: Path, recipe: Recipe) -> None:
    ingest.run(recipe)
    shard = max(workspace(recipe).images.iterdir(), key=lambda path: path.stat().st_size)
    again = make_recipe(tmp_path, dataset={"folder_path": shutil.copy(shard, tmp_path / "images.tar")})
    ingest.run(again)
    captions = {sample.content: sample.captions for sample in current_snapshot(recipe).samples}
    samples = current_snapshot(again).samples
    assert samples
    assert all(captions[sample.content] == sample.captions for sample in samples)


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


def test_real_photographs_fill_their_buckets(tmp_path: Path) -> None:
    skimage = pytest.importorskip("skimage", reason="scikit-image ships the photographs")
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn ships the photographs")
    shipped = Path(skimage.__file__).parent / "data"
    also = Path(datasets.__file__).parent / "images"
    captions = {
        "astronaut.png": "a portrait of an astronaut in an orange suit",
        "chelsea.png": "a ginger cat, close",
        "coffee.png": "a cup of coffee on a wooden table",
        "rocket.jpg": "a rocket on its launch pad at dusk",
        "hubble_deep_field.jpg": "galaxies in deep space",
        "camera.png": "a photographer with a tripod, black and white",
        "china.jpg": "a temple roof under a blue sky",
        "flower.jpg": "a dahlia",
    }
    for name, caption in captions.items():
        source = shipped / name if (shipped / name).exists() else also / name
        if not source.exists():
            pytest.skip(f"{name} is not shipped")
        write(tmp_path / "images" / name, source.read_bytes())
        write((tmp_path / "images" / name).with_suffix(".txt"), caption.encode())
    recipe = make_recipe(
        tmp_path,
        dataset={"resolution": 512},
        ingest={"bucket_step": 64, "holdout": 0.0, "shard_samples": 256},
    )
    assert ingest.run(recipe).done == len(captions)
    places = {
        Path(sample.source).name: (sample.bucket_width, sample.bucket_height)
        for sample in current_snapshot(recipe).samples
    }
    assert places["astronaut.png"] == places["camera.png"] == (512, 512)
    assert places["china.jpg"] == places["rocket.jpg"] == (640, 384)
    for sample, data in read_images(workspace(recipe).images, current_snapshot(recipe).samples):
        whole = decode_rgb(data)
        assert whole.size == (sample.width, sample.height)
        values = np.asarray(resize_and_crop(whole, sample), dtype=np.float32)
        assert abs(values.mean() - np.asarray(whole, dtype=np.float32).mean()) < 12

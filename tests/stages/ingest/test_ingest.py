"""What a folder of images becomes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from eridiff.images.decode import decode_rgb, resize_and_crop
from eridiff.images.shards import read_images
from eridiff.recipe import Recipe
from stages import ingest
from stages.dataset import current_snapshot, workspace
from tests.stages.ingest.folder import add, make_recipe, write


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


def test_tars_are_datasets_too(tmp_path: Path, recipe: Recipe) -> None:
    ingest.run(recipe)
    shard = max(workspace(recipe).images.iterdir(), key=lambda path: path.stat().st_size)
    again = make_recipe(tmp_path, dataset={"folder_path": shutil.copy(shard, tmp_path / "images.tar")})
    ingest.run(again)
    captions = {sample.content: sample.captions for sample in current_snapshot(recipe).samples}
    samples = current_snapshot(again).samples
    assert samples
    assert all(captions[sample.content] == sample.captions for sample in samples)


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

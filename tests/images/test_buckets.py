from __future__ import annotations

import random

import pytest

from eridiff.images.bucket_report import bucket_rows, bucket_table
from eridiff.images.buckets import MAX_ASPECT, bucket_sides, crop_loss, is_enlarged, place


@pytest.mark.parametrize(
    ("resolution", "step"), [(1024, 64), (512, 64), (128, 64), (128, 16), (64, 64), (768, 32)]
)
def test_sides_are_steps_and_areas_fit(resolution, step):
    sides = bucket_sides(resolution, step)
    assert (resolution, resolution) in sides
    for width, height in sides:
        assert width % step == height % step == 0
        assert width * height <= resolution**2
        assert 1 / MAX_ASPECT <= width / height <= MAX_ASPECT
        assert (height, width) in sides


def test_the_usual_buckets_are_there():
    assert {(1152, 896), (896, 1152), (1216, 832), (1344, 768), (1536, 640)} <= set(bucket_sides(1024, 64))


def test_a_step_that_fits_nowhere_is_refused():
    with pytest.raises(ValueError, match="no bucket"):
        bucket_sides(64, 128)


@pytest.mark.parametrize(("resolution", "step"), [(1024, 64), (128, 64), (128, 16)])
def test_the_resized_image_just_covers_the_best_bucket(resolution, step):
    buckets = bucket_sides(resolution, step)
    chance = random.Random(resolution + step)
    for _ in range(300):
        width, height = chance.randrange(1, 6000), chance.randrange(1, 6000)
        placed = place(width, height, buckets)
        assert (placed.bucket_width, placed.bucket_height) in buckets
        assert placed.resized_width >= placed.bucket_width
        assert placed.resized_height >= placed.bucket_height
        assert placed.resized_width == placed.bucket_width or placed.resized_height == placed.bucket_height
        assert placed.crop_left == (placed.resized_width - placed.bucket_width) // 2
        assert placed.crop_top == (placed.resized_height - placed.bucket_height) // 2
        best = min(1 - min(w * height / (h * width), h * width / (w * height)) for w, h in buckets)
        assert crop_loss(placed) == pytest.approx(best, abs=0.02)


def test_geometry_of_a_photograph():
    placed = place(3000, 2000, bucket_sides(1024, 64))
    assert (placed.bucket_width, placed.bucket_height) == (1216, 832)
    assert (placed.resized_width, placed.resized_height) == (1248, 832)
    assert (placed.crop_left, placed.crop_top) == (16, 0)
    assert crop_loss(placed) == pytest.approx(1 - 1216 / 1248)
    assert not is_enlarged(placed)


def test_small_images_are_enlarged_and_counted():
    assert is_enlarged(place(500, 500, bucket_sides(512, 64)))
    assert not is_enlarged(place(512, 512, bucket_sides(512, 64)))


def test_a_panorama_gets_the_widest_bucket():
    placed = place(30_000, 1000, bucket_sides(1024, 64))
    assert (placed.bucket_width, placed.bucket_height) == (2048, 512)
    assert crop_loss(placed) == pytest.approx(1 - 4 / 30, abs=1e-3)


class Row:
    def __init__(self, width: int, height: int, split: str, repeats: int) -> None:
        placed = place(width, height, bucket_sides(128, 64))
        for name in type(placed).__slots__:
            setattr(self, name, getattr(placed, name))
        self.split, self.repeats = split, repeats


def test_the_report_counts_every_image_once():
    rows = bucket_rows(
        [
            Row(128, 128, "train", 3),
            Row(100, 100, "train", 1),
            Row(160, 128, "holdout", 2),
            Row(512, 128, "train", 1),
        ]
    )
    assert [(row.width, row.height) for row in rows] == [(128, 128), (256, 64)]
    square, wide = rows
    assert (square.images, square.held_out, square.seen_an_epoch, square.enlarged) == (2, 1, 4, 1)
    assert square.worst_crop_loss == pytest.approx(0.2)
    assert square.mean_crop_loss == pytest.approx(0.2 / 3)
    assert wide.mean_crop_loss == 0
    assert bucket_table(rows).row_count == 2

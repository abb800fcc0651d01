from __future__ import annotations

import json

import pytest

from eridiff.evaluation.holdout import Losses, from_json, holdout_grid, mid_points, point_batches, to_json
from tests.evaluation.samples import make_sample

SAMPLES = [make_sample(n, side=64 if n % 3 else 128) for n in range(7)]
MADE_OF = {"latents": "l", "text": "t", "base": "b"}


def test_times_are_the_middles_of_equal_slices() -> None:
    assert mid_points(4) == (0.125, 0.375, 0.625, 0.875)


def test_the_order_of_rows_does_not_matter() -> None:
    grids = [holdout_grid(rows, max_images=4, num_times=3, seed=1) for rows in (SAMPLES, SAMPLES[::-1])]
    assert grids[0] == grids[1]
    assert [sample.content for sample in grids[0].samples] == sorted(s.content for s in SAMPLES)[:4]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"num_times": 4},
        {"max_images": 3},
    ],
)
def test_other_points_are_another_grid(other: dict[str, int]) -> None:
    given = {"max_images": 4, "num_times": 3, "seed": 1}
    first = holdout_grid(SAMPLES, **given).digest(MADE_OF)
    assert holdout_grid(SAMPLES, **(given | other)).digest(MADE_OF) != first
    assert holdout_grid(SAMPLES, **given).digest({**MADE_OF, "base": "c"}) != first


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_point_is_taken_once_in_batches_of_one_bucket(batch_size: int) -> None:
    grid = holdout_grid(SAMPLES, max_images=99, num_times=3, seed=1)
    batches = point_batches(grid, batch_size)
    points = [(point.image, point.time) for batch in batches for point in batch]
    assert sorted(points) == [(image, time) for image in range(7) for time in range(3)]
    for batch in batches:
        assert len(batch) <= batch_size
        assert len({grid.samples[point.image].bucket_width for point in batch}) == 1


def test_means_and_paired_change() -> None:
    base = Losses(((1.0, 3.0), (2.0, 4.0)))
    lora = Losses(((0.5, 2.5), (1.0, 3.0)))
    assert base.mean == 2.5
    assert base.by_time == (1.5, 3.5)
    change = lora.change_from(base)
    assert change.mean == pytest.approx(-0.75)
    assert change.error == pytest.approx(0.25)
    assert Losses(((1.0,),)).change_from(Losses(((2.0,),))).error is None


def test_losses_survive_a_file() -> None:
    losses = Losses(((0.1, 0.2), (0.3, 0.4)))
    assert from_json(json.loads(json.dumps(to_json(losses)))) == losses

from __future__ import annotations

from collections import Counter

import pytest

from eridiff.store.snapshots import Sample
from eridiff.training.order import DrawnBatch, Order
from tests.training.conftest import make_sample

SAMPLES = [
    *(make_sample(number, repeats=1 + number % 3) for number in range(11)),
    *(make_sample(20 + number, width=128) for number in range(3)),
]


def epoch(order: Order, number: int) -> list[DrawnBatch]:
    start = number * order.batches_per_epoch
    return [order.batch(index) for index in range(start, start + order.batches_per_epoch)]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 100])
@pytest.mark.parametrize("number", [0, 1, 5])
def test_an_epoch_shows_every_sample_exactly_its_repeats(batch_size: int, number: int) -> None:
    order = Order(SAMPLES, batch_size, seed=1)
    shown = Counter(draw.sample_id for batch in epoch(order, number) for draw in batch.draws)
    assert shown == {sample.sample_id: sample.repeats for sample in SAMPLES}


def test_occurrences_count_through_all_epochs() -> None:
    order = Order(SAMPLES, 4, seed=1)
    draws = [draw for number in range(3) for batch in epoch(order, number) for draw in batch.draws]
    for sample in SAMPLES:
        counted = sorted(draw.occurrence for draw in draws if draw.sample_id == sample.sample_id)
        assert counted == list(range(3 * sample.repeats))


def test_a_batch_is_of_one_bucket_and_partial_ones_are_kept() -> None:
    buckets = {sample.sample_id: sample.bucket_width for sample in SAMPLES}
    order = Order(SAMPLES, 4, seed=1)
    sizes = Counter()
    for batch in epoch(order, 0):
        assert len({buckets[draw.sample_id] for draw in batch.draws}) == 1
        sizes[buckets[batch.draws[0].sample_id], len(batch.draws)] += 1
    assert sizes == {(64, 4): 5, (64, 1): 1, (128, 3): 1}


def test_epochs_and_seeds_differ_and_rows_in_any_order_give_the_same() -> None:
    order = Order(SAMPLES, 4, seed=1)
    plan = [batch.draws for batch in epoch(order, 0)]
    assert plan == [batch.draws for batch in epoch(Order(SAMPLES[::-1], 4, seed=1), 0)]
    names = [[draw.sample_id for draw in draws] for draws in plan]
    for other in (epoch(order, 1), epoch(Order(SAMPLES, 4, seed=2), 0)):
        assert names != [[draw.sample_id for draw in batch.draws] for batch in other]


def test_any_batch_can_be_asked_for_first() -> None:
    straight = Order(SAMPLES, 4, seed=1)
    wanted = [straight.batch(index) for index in range(40)]
    for index in (39, 3, 17, 0):
        assert Order(SAMPLES, 4, seed=1).batch(index) == wanted[index]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_devices_share_a_batch_without_loss_or_doubling(num_ranks: int) -> None:
    batch = Order(SAMPLES, 4, seed=1).batch(2)
    shares = [batch.share(rank, num_ranks) for rank in range(num_ranks)]
    assert Counter(draw for share in shares for draw in share) == Counter(batch.draws)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_order_is_this_one_for_good() -> None:
    """A change here changes every run that is resumed: it needs a new version of the training's code."""
    order = Order([make_sample(number) for number in range(4)], 2, seed=42)
    found = [[int(draw.sample_id[:20], 16) for draw in order.batch(index).draws] for index in range(4)]
    assert found == GOLDEN


GOLDEN = [[1, 2], [3, 0], [3, 1], [2, 0]]


def test_nothing_to_draw_is_refused() -> None:
    empty: list[Sample] = []
    with pytest.raises(ValueError, match="no sample"):
        Order(empty, 1, seed=1).batch(0)

"""Which samples make which batch: a pure function of (samples, batch size, seed), whatever the devices.

An epoch shows every sample exactly `repeats` times. Samples of one bucket are shuffled, cut into batches, the
last of which may be smaller, and the batches of all buckets are shuffled. Shuffling sorts by a hash, so it
depends on neither the order of the rows nor the version of a random number library.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eridiff.store.snapshots import Sample


@dataclass(frozen=True, slots=True)
class Draw:
    """One showing of one sample; `occurrence` counts its showings over the whole run, from 0."""

    sample_id: str
    occurrence: int


@dataclass(frozen=True, slots=True)
class DrawnBatch:
    """Samples of one bucket that are shown together; `index` counts batches over the whole run, from 0."""

    index: int
    epoch: int
    draws: tuple[Draw, ...]

    def share(self, rank: int, num_ranks: int) -> tuple[Draw, ...]:
        """The draws that device `rank` of `num_ranks` takes: maybe none of a small batch."""
        return self.draws[rank::num_ranks]


class Order:
    """The endless sequence of batches of a run.

    Args:
        samples: the rows to train on, in any order.
        batch_size: samples in a batch over all devices.
        seed: the run's seed.
    """

    def __init__(self, samples: Iterable[Sample], batch_size: int, seed: int) -> None:
        self._batch_size, self._seed = batch_size, seed
        self._repeats: dict[str, int] = {}
        self._buckets: dict[tuple[int, int], list[str]] = defaultdict(list)
        for sample in samples:
            self._repeats[sample.sample_id] = sample.repeats
            self._buckets[sample.bucket_width, sample.bucket_height].append(sample.sample_id)
        sizes = [sum(self._repeats[name] for name in names) for names in self._buckets.values()]
        self.batches_per_epoch = sum(-(-size // batch_size) for size in sizes)
        self._planned: tuple[int, list[tuple[Draw, ...]]] | None = None

    def largest(self) -> tuple[Draw, ...]:
        """The draws of a whole batch of that bucket whose batches have most pixels."""
        showings = {
            bucket: sum(self._repeats[name] for name in names) for bucket, names in self._buckets.items()
        }
        sizes = {bucket: min(count, self._batch_size) for bucket, count in showings.items()}
        widest = max(sizes, key=lambda bucket: (bucket[0] * bucket[1] * sizes[bucket], bucket))
        names = self._buckets[widest]
        return tuple(Draw(names[index % len(names)], index // len(names)) for index in range(sizes[widest]))

    def batch(self, index: int) -> DrawnBatch:
        """Batch number `index` of the run, from 0; planning an epoch costs time in its size once.

        Raises:
            ValueError: there is no sample to draw.
        """
        if not self.batches_per_epoch:
            raise ValueError("there is no sample to draw batches from")
        epoch, position = divmod(index, self.batches_per_epoch)
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, self._plan(epoch)
        return DrawnBatch(index, epoch, self._planned[1][position])

    def _plan(self, epoch: int) -> list[tuple[Draw, ...]]:
        keyed: list[tuple[bytes, tuple[Draw, ...]]] = []
        for (width, height), names in self._buckets.items():
            draws = sorted(
                (
                    Draw(name, epoch * self._repeats[name] + repeat)
                    for name in names
                    for repeat in range(self._repeats[name])
                ),
                key=lambda draw: self._key("sample", epoch, draw.sample_id, draw.occurrence),
            )
            for start in range(0, len(draws), self._batch_size):
                key = self._key("batch", epoch, f"{width}x{height}", start // self._batch_size)
                keyed.append((key, tuple(draws[start : start + self._batch_size])))
        return [draws for _, draws in sorted(keyed, key=lambda pair: pair[0])]

    def _key(self, purpose: str, epoch: int, name: str, number: int) -> bytes:
        return hashlib.sha256(f"{self._seed}/{purpose}/{epoch}/{name}/{number}".encode()).digest()

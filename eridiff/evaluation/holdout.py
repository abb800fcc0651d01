"""Which losses are taken on the hold-out, and what they say: everything about validation but the model.

A training loss is mostly noise, because its times and noises are drawn afresh. Here nothing is drawn: each
image is noised at the mid-points of equal slices of time. Two losses then differ by the LoRA alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from eridiff.store.files import digest_json

if TYPE_CHECKING:
    from eridiff.store.snapshots import Sample

LOSS_VERSION = 1


@dataclass(frozen=True)
class HoldoutGrid:
    """The points at which losses are taken.

    Attributes:
        samples: images of the hold-out, in the order of their content's digest.
        times: t in (0, 1).
        seed: decides the noise.
    """

    samples: tuple[Sample, ...]
    times: tuple[float, ...]
    seed: int

    def digest(self, made_of: Mapping[str, Any]) -> str:
        """What names the grid: its points and `made_of`: the spaces, base and precision of its losses."""
        rows = [[s.sample_id, s.latent_key(False), s.captions[0]] for s in self.samples]
        own = {"version": LOSS_VERSION, "rows": rows, "times": self.times, "seed": self.seed}
        return digest_json({**own, "made_of": dict(made_of)})


@dataclass(frozen=True)
class Losses:
    """Losses at all points of a grid: `values[image][time]`, mean squared errors, unweighted."""

    values: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> float:
        """Over images and times."""
        return fmean(self.by_image)

    @property
    def by_image(self) -> tuple[float, ...]:
        """Mean over times of each image."""
        return tuple(fmean(row) for row in self.values)

    @property
    def by_time(self) -> tuple[float, ...]:
        """Mean over images at each time."""
        return tuple(fmean(column) for column in zip(*self.values, strict=True))

    def change_from(self, base: Losses) -> Change:
        """How the mean differs from `base`'s, with the standard error of that difference."""
        differences = [own - other for own, other in zip(self.by_image, base.by_image, strict=True)]
        error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
        return Change(fmean(differences), error)


@dataclass(frozen=True)
class Change:
    """A paired difference over images; `error` is its standard error, None for a single image."""

    mean: float
    error: float | None


def holdout_grid(holdout: Iterable[Sample], *, max_images: int, num_times: int, seed: int) -> HoldoutGrid:
    """The `max_images` images of smallest content digest: others that come or go move few."""
    ordered = sorted(holdout, key=lambda sample: (sample.content, sample.sample_id))
    return HoldoutGrid(tuple(ordered[:max_images]), mid_points(num_times), seed)


def mid_points(count: int) -> tuple[float, ...]:
    """Middles of `count` equal slices of [0, 1]."""
    return tuple((index + 0.5) / count for index in range(count))


@dataclass(frozen=True)
class Point:
    """One image at one time; numbers count samples and times of the grid."""

    image: int
    time: int


def point_batches(grid: HoldoutGrid, batch_size: int) -> list[tuple[Point, ...]]:
    """All points, cut into batches of images of one bucket."""

    def bucket(image: int) -> tuple[int, int]:
        return grid.samples[image].bucket_width, grid.samples[image].bucket_height

    batches: list[tuple[Point, ...]] = []
    for _, images in groupby(sorted(range(len(grid.samples)), key=bucket), key=bucket):
        points = [Point(image, time) for image in images for time in range(len(grid.times))]
        batches += [tuple(points[at : at + batch_size]) for at in range(0, len(points), batch_size)]
    return batches


def to_json(losses: Losses) -> dict[str, Any]:
    """Losses for a file, with the means that people look for."""
    return {"mean": losses.mean, "by_time": losses.by_time, "values": losses.values}


def from_json(found: dict[str, Any]) -> Losses:
    """Losses from a file that `to_json` made."""
    return Losses(tuple(tuple(row) for row in found["values"]))

"""Buckets: the few shapes that images are scaled and cropped to, so that batches can be made of them.

Every image gets a bucket, nothing is dropped: what a crop loses and what must be enlarged is counted, in
`eridiff.images.bucket_report`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Protocol

MAX_ASPECT = 4.0
"""Longest by shortest side of a bucket, as the models were trained. Longer panoramas are cropped."""


class Geometry(Protocol):
    """How an image is scaled and cropped; all in px. `eridiff.store` samples and placements are such."""

    @property
    def width(self) -> int:
        """Of the upright image."""
        ...

    @property
    def height(self) -> int:
        """Of the upright image."""
        ...

    @property
    def resized_width(self) -> int:
        """Of the whole image after scaling."""
        ...

    @property
    def resized_height(self) -> int:
        """Of the whole image after scaling."""
        ...

    @property
    def crop_left(self) -> int:
        """Cut off on the left after scaling."""
        ...

    @property
    def crop_top(self) -> int:
        """Cut off at the top after scaling."""
        ...

    @property
    def bucket_width(self) -> int:
        """What is kept."""
        ...

    @property
    def bucket_height(self) -> int:
        """What is kept."""
        ...


@dataclass(frozen=True, slots=True)
class Placement:
    """How an image is put into its bucket; all in px.

    Attributes:
        width: of the upright image as the user has it.
        height: of the upright image as the user has it.
        resized_width: after scaling so that it just covers the bucket.
        resized_height: after scaling so that it just covers the bucket.
        crop_left: columns of the resized image left of the bucket.
        crop_top: rows of the resized image above the bucket.
        bucket_width: columns that are kept.
        bucket_height: rows that are kept.
    """

    width: int
    height: int
    resized_width: int
    resized_height: int
    crop_left: int
    crop_top: int
    bucket_width: int
    bucket_height: int


def bucket_sides(resolution: int, step: int) -> tuple[tuple[int, int], ...]:
    """All buckets (width, height) px, sorted, of about `resolution`² px and never more.

    Args:
        resolution: side of the square bucket, px.
        step: sides are multiples of this, px.

    Raises:
        ValueError: not even a square of one step fits.
    """
    area = resolution * resolution
    buckets = set()
    for side in range(step, int(resolution * MAX_ASPECT), step):
        other = area // side // step * step
        if other and 1 / MAX_ASPECT <= side / other <= MAX_ASPECT:
            buckets |= {(side, other), (other, side)}
    if not buckets:
        raise ValueError(f"no bucket with sides in steps of {step} px fits {resolution} x {resolution} px")
    return tuple(sorted(buckets))


@functools.lru_cache(maxsize=4096)
def place(width: int, height: int, buckets: tuple[tuple[int, int], ...]) -> Placement:
    """The placement that loses least of an image of that size; of equal ones, the largest bucket."""
    aspect = math.log(width / height)

    def loss_then_size(sides: tuple[int, int]) -> tuple[float, int]:
        return round(abs(math.log(sides[0] / sides[1]) - aspect), 9), -sides[0] * sides[1]

    bucket_width, bucket_height = min(buckets, key=loss_then_size)
    resized_width, resized_height = bucket_width, bucket_height
    if bucket_width * height >= bucket_height * width:  # the image is the taller shape: widths meet
        resized_height = max(bucket_height, _scaled(height, bucket_width, width))
    else:
        resized_width = max(bucket_width, _scaled(width, bucket_height, height))
    return Placement(
        width=width,
        height=height,
        resized_width=resized_width,
        resized_height=resized_height,
        crop_left=(resized_width - bucket_width) // 2,
        crop_top=(resized_height - bucket_height) // 2,
        bucket_width=bucket_width,
        bucket_height=bucket_height,
    )


def _scaled(side: int, numerator: int, denominator: int) -> int:
    """`side * numerator / denominator`, rounded half up, without floating point."""
    return (2 * side * numerator + denominator) // (2 * denominator)


def crop_loss(geometry: Geometry) -> float:
    """Share of the image's area that the crop cuts off, 0 to 1."""
    kept = geometry.bucket_width * geometry.bucket_height
    return 1.0 - kept / (geometry.resized_width * geometry.resized_height)


def is_enlarged(geometry: Geometry) -> bool:
    """Whether the image is too small for its bucket and is scaled up."""
    return geometry.resized_width > geometry.width or geometry.resized_height > geometry.height

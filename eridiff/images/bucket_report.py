"""How a dataset fills its buckets: what is cropped away, what is enlarged, how batches can be made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich import box
from rich.table import Table

from eridiff.images.buckets import Geometry, crop_loss, is_enlarged


class Placed(Geometry, Protocol):
    """An image in its bucket, as `eridiff.store` samples say it."""

    @property
    def split(self) -> str:
        """`train` or `holdout`."""
        ...

    @property
    def repeats(self) -> int:
        """How often an epoch draws it."""
        ...


@dataclass(frozen=True)
class BucketRow:
    """One bucket.

    Attributes:
        width: px.
        height: px.
        images: how many are trained on.
        held_out: how many are not.
        seen_an_epoch: how often an epoch draws from this bucket.
        mean_crop_loss: share of the area that is cut off, 0 to 1, mean over all images.
        worst_crop_loss: the largest of them.
        enlarged: how many images are smaller than the bucket and scaled up.
    """

    width: int
    height: int
    images: int
    held_out: int
    seen_an_epoch: int
    mean_crop_loss: float
    worst_crop_loss: float
    enlarged: int


def bucket_rows(samples: Iterable[Placed]) -> list[BucketRow]:
    """A row for each bucket in use, from tall to wide."""
    groups: dict[tuple[int, int], list[Placed]] = defaultdict(list)
    for sample in samples:
        groups[sample.bucket_width, sample.bucket_height].append(sample)
    ordered = sorted(groups.items(), key=lambda group: (group[0][0] / group[0][1], group[0]))
    return [_row(width, height, group) for (width, height), group in ordered]


def _row(width: int, height: int, group: Sequence[Placed]) -> BucketRow:
    losses = [crop_loss(sample) for sample in group]
    train = [sample for sample in group if sample.split == "train"]
    return BucketRow(
        width=width,
        height=height,
        images=len(train),
        held_out=len(group) - len(train),
        seen_an_epoch=sum(sample.repeats for sample in train),
        mean_crop_loss=sum(losses) / len(losses),
        worst_crop_loss=max(losses),
        enlarged=sum(is_enlarged(sample) for sample in group),
    )


def bucket_table(rows: Sequence[BucketRow]) -> Table:
    """The rows as a table for a terminal, with totals."""
    table = Table(title="Buckets", box=box.SIMPLE, collapse_padding=True, show_footer=len(rows) > 1)
    images, held_out = sum(row.images for row in rows), sum(row.held_out for row in rows)
    count = images + held_out
    mean_loss = sum(row.mean_crop_loss * (row.images + row.held_out) for row in rows) / max(count, 1)
    footers = {
        "bucket px": "all",
        "aspect": "",
        "train": str(images),
        "held out": str(held_out),
        "an epoch": str(sum(row.seen_an_epoch for row in rows)),
        "cropped": f"{mean_loss:.1%}",
        "worst": f"{max((row.worst_crop_loss for row in rows), default=0):.1%}",
        "enlarged": str(sum(row.enlarged for row in rows)),
    }
    for header, footer in footers.items():
        table.add_column(header, footer, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.width} x {row.height}",
            f"{row.width / row.height:.2f}",
            str(row.images),
            str(row.held_out),
            str(row.seen_an_epoch),
            f"{row.mean_crop_loss:.1%}",
            f"{row.worst_crop_loss:.1%}",
            str(row.enlarged),
        )
    return table

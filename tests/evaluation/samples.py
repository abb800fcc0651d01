"""Rows of a hold-out, made up."""

from __future__ import annotations

from eridiff.store.snapshots import Sample

PROMPTS = ("", "a red circle on a sand background", "two blue stars", "blurry")


def make_sample(number: int, side: int = 64) -> Sample:
    content = f"{number:064x}"
    return Sample(
        sample_id=f"{content[-20:]}-{side}x{side}",
        content=content,
        captions=(PROMPTS[1 + number % 2],),
        width=100,
        height=80,
        resized_width=80,
        resized_height=side,
        crop_left=8,
        crop_top=0,
        bucket_width=side,
        bucket_height=side,
        flip=False,
        split="holdout",
        repeats=1,
        shard="a.tar",
        source=f"images/{number}.png",
        dataset=0,
    )

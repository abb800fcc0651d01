"""What the files of a recipe's datasets come to: samples in buckets, shards, and what is left out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eridiff.errors import DataError, RecipeError
from eridiff.images.buckets import bucket_sides, is_enlarged
from eridiff.images.captions import UnusableCaption
from eridiff.images.discover import Discovery
from eridiff.images.formats import UnusableImage
from eridiff.images.judge import Accepted, Rules, judge
from eridiff.images.scan import ScanCache
from eridiff.images.shards import Shard, plan_shards
from eridiff.images.sources import escaped
from eridiff.recipe import Dataset, Recipe
from eridiff.store.snapshots import Quarantined, Sample, Snapshot, sample_ids

_EXAMPLES_SHOWN = 5


@dataclass(frozen=True)
class Layout:
    """A pure function of the files and the recipe.

    Attributes:
        snapshot: the samples and the quarantine.
        shards: the tars that hold the samples.
        notes: counts of what a user may want to know about the files.
    """

    snapshot: Snapshot
    shards: Sequence[Shard]
    notes: Mapping[str, int]


def lay_out(recipe: Recipe, found: Sequence[Discovery], known: ScanCache) -> Layout:
    """Judges every image of the recipe's datasets, all of whose files have been scanned.

    Args:
        recipe: says how images are judged.
        found: what each of its datasets holds.
        known: what is in each file.

    Raises:
        DataError: more images are unusable than `ingest.max_quarantine`, or none is left to train on.
        RecipeError: no bucket fits a dataset's resolution.
    """
    accepted: list[tuple[int, Accepted]] = []
    rejected: list[tuple[str, str]] = []
    without_caption = 0
    for index, discovery in enumerate(found):
        rules = _rules(recipe, recipe.datasets[index])
        rejected += discovery.unreadable
        for image in discovery.images:
            try:
                accepted.append((index, judge(image, known, rules)))
            except (UnusableImage, UnusableCaption) as error:
                rejected.append((image.image.name, error.reason))
                without_caption += image.caption is None and isinstance(error, UnusableCaption)
    if not accepted and without_caption:
        raise DataError(
            "No image has a caption.",
            where=", ".join(str(dataset.folder_path) for dataset in recipe.datasets),
            found=f"{without_caption} images without one",
            wanted="a text file beside each image, of the same name: a.jpg and a.txt",
            fix="write captions, or give datasets.default_caption",
        )
    _refuse_if_too_many(recipe, len(accepted), rejected)
    shards = plan_shards((image.packed for _, image in accepted), shard_images=recipe.ingest.shard_samples)
    quarantined = sorted((escaped(name), escaped(reason)) for name, reason in rejected)
    snapshot = Snapshot(
        tuple(_samples(recipe, accepted, shards)), tuple(Quarantined(*entry) for entry in quarantined)
    )
    if not snapshot.train:
        raise DataError(
            "No image is left to train on.",
            found=f"{len(snapshot.holdout)} images, all of them held out",
            fix="lower ingest.holdout, or add images",
        )
    return Layout(snapshot, shards, _notes(found, snapshot))


def _rules(recipe: Recipe, dataset: Dataset) -> Rules:
    try:
        buckets = bucket_sides(dataset.resolution, recipe.ingest.bucket_step)
    except ValueError as error:
        raise RecipeError("No bucket is small enough.", where="ingest.bucket_step", found=error) from error
    return Rules(
        buckets=buckets,
        max_side_px=recipe.ingest.max_side_px,
        caption_lines=dataset.caption_lines,
        default_caption=dataset.default_caption,
        trigger_word=recipe.trigger_word if dataset.trigger_word is None else dataset.trigger_word,
        holdout=recipe.ingest.holdout,
    )


def _refuse_if_too_many(recipe: Recipe, num_accepted: int, rejected: Sequence[tuple[str, str]]) -> None:
    total = num_accepted + len(rejected)
    allowed = recipe.ingest.max_quarantine
    if num_accepted and len(rejected) <= allowed * total:
        return
    examples = "".join(f"\n          {name}: {reason}" for name, reason in rejected[:_EXAMPLES_SHOWN])
    more = (
        f"\n          and {len(rejected) - _EXAMPLES_SHOWN} more" if len(rejected) > _EXAMPLES_SHOWN else ""
    )
    raise DataError(
        "No image can be used." if not num_accepted else "Too many images cannot be used.",
        where=", ".join(str(dataset.folder_path) for dataset in recipe.datasets),
        found=f"{len(rejected)} of {total}:{examples}{more}",
        wanted=f"at most {allowed:.0%} (ingest.max_quarantine)",
        fix="mend or remove these files, or raise ingest.max_quarantine",
    )


def _samples(
    recipe: Recipe, accepted: Sequence[tuple[int, Accepted]], shards: Sequence[Shard]
) -> Iterator[Sample]:
    """The rows of the snapshot; equal images are told apart by what is trained on, then by name."""
    shard_names = {image.identity: shard.name for shard in shards for image in shard.images}
    ordered = sorted(
        accepted, key=lambda pair: (pair[1].stem, pair[1].captions, pair[0], pair[1].source.name)
    )
    names = sample_ids(image.stem for _, image in ordered)
    for name, (index, image) in zip(names, ordered, strict=True):
        yield Sample(
            sample_id=name,
            content=image.content,
            captions=image.captions,
            **dataclasses.asdict(image.placement),
            flip=recipe.datasets[index].flip_x,
            split=image.split,
            repeats=recipe.datasets[index].num_repeats,
            shard=shard_names[image.packed.identity],
            source=escaped(image.source.name),
            dataset=index,
        )


def _notes(found: Sequence[Discovery], snapshot: Snapshot) -> dict[str, int]:
    """Counts that are not zero."""
    samples = snapshot.samples
    captions = Counter(
        image.caption.name for discovery in found for image in discovery.images if image.caption is not None
    )
    counts = {
        "held out": len(snapshot.holdout),
        "smaller than their bucket": sum(map(is_enlarged, samples)),
        "copies of another image": len(samples) - len({sample.content for sample in samples}),
        "images that share a caption file": sum(count for count in captions.values() if count > 1),
        "caption files without an image": sum(discovery.lone_captions for discovery in found),
        "other files": sum(discovery.other_files for discovery in found),
    }
    return {name: count for name, count in counts.items() if count}

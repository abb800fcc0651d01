"""Images and captions into webdataset shards and a snapshot; the user's files are only read.

Files are found, scanned (each read and remembered by its state), judged, packed into shards and listed in a
snapshot. All but the scan is a function of the files alone: a run that was killed is simply run again.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing

from eridiff.demo.dataset import ensure, is_begun, num_undrawn
from eridiff.errors import DataError, Interrupted, StoreError
from eridiff.images.bucket_report import bucket_rows, bucket_table
from eridiff.images.discover import Discovery, discover
from eridiff.images.scan import Examine, ScanCache, examine_caption, examine_image, scan
from eridiff.images.shards import Shard, write_shard
from eridiff.images.sources import Source
from eridiff.recipe import Recipe
from eridiff.store.files import atomic_path, remove_abandoned, write_atomic, write_json
from eridiff.store.paths import AnyPath, arrow_source, sizes_in
from eridiff.store.snapshots import Snapshot, current, dataset_folder, diff, save_current
from stages.dataset import dataset_key, folders, workspace
from stages.layout import Layout, lay_out
from stages.stage import StagePlan, StageReport, StopFlag, console, human_bytes, progress, stopping
from stages.superseded import remove_superseded

logger = logging.getLogger("eridiff")

SAVE_SCAN_EVERY_S = 15.0
"""What a kill can cost of the reading."""

_WRITERS = 2
"""Shards written at once: one fills while another is flushed to the disk."""

_REASONS_LOGGED = 10


def plan(recipe: Recipe) -> StagePlan:
    """What `run` would do, from names and states of files and what is known about them; writes nothing.

    Raises:
        DataError: a dataset is missing, empty, or more of it is unusable than `ingest.max_quarantine`.
    """
    found = _discover(recipe)
    known = _known(recipe)
    unread = _unread(found, known)
    undrawn = sum(num_undrawn(dataset.folder_path, workspace(recipe).own) for dataset in recipe.datasets)
    if unread or undrawn:
        images = [source for source, examine in unread if examine is examine_image]
        captions = len(unread) - len(images)
        details = {"images to draw": undrawn} if undrawn else {}
        return StagePlan(
            "ingest",
            done=sum(len(discovery.images) for discovery in found) - max(len(images), captions),
            missing=max(len(images), captions) + undrawn,
            bytes_to_write=sum(source.num_bytes for source in images),
            details={**details, "images to read": len(images), "captions to read": captions},
        )
    layout = lay_out(recipe, found, known)
    missing = _missing_shards(recipe, layout)
    before = _current(recipe)
    changed = _num_changed(before, layout.snapshot, missing)
    removed = 0 if before is None else len(diff(before, layout.snapshot).removed)
    return StagePlan(
        "ingest",
        done=len(layout.snapshot.samples) - changed,
        missing=changed,
        quarantined=len(layout.snapshot.quarantined),
        bytes_to_write=sum(shard.num_bytes for shard in missing),
        details={**layout.notes, **({"removed": removed} if removed else {})},
    )


def run(recipe: Recipe) -> StageReport:
    """Brings shards and snapshot up to date with the user's files.

    Raises:
        DataError: a dataset is missing, empty, or more of it is unusable than `ingest.max_quarantine`.
        StoreError: the disk is full.
        Interrupted: the process was asked to stop; what was read and written so far is kept.
    """
    started = time.monotonic()
    _draw(recipe)
    found = _discover(recipe)
    known = _known(recipe)
    with stopping() as stop:
        _read(found, known, _folder(recipe) / "scan.parquet", stop)
        layout = lay_out(recipe, found, known)
        missing = _missing_shards(recipe, layout)
        written = _write(workspace(recipe).images, missing, stop)
    before = _current(recipe)
    changed = _num_changed(before, layout.snapshot, missing)
    report_path = _folder(recipe) / "snapshots" / f"{layout.snapshot.id}.report.json"
    if layout.snapshot != before or not report_path.exists():
        _tell(layout, report_path)
        save_current(workspace(recipe).datasets, dataset_key(recipe), layout.snapshot)
    remove_superseded(workspace(recipe), _folder(recipe))
    for folder in (workspace(recipe).images, _folder(recipe), report_path.parent):
        remove_abandoned(folder)
    return StageReport(
        "ingest",
        done=changed,
        reused=len(layout.snapshot.samples) - changed,
        quarantined=len(layout.snapshot.quarantined),
        seconds=time.monotonic() - started,
        bytes_written=written,
        outputs={
            "snapshot": str(report_path.with_name(f"{layout.snapshot.id}.parquet")),
            "buckets": str(report_path),
            "images": str(workspace(recipe).images),
        },
    )


def _folder(recipe: Recipe) -> AnyPath:
    return dataset_folder(workspace(recipe).datasets, dataset_key(recipe))


def _draw(recipe: Recipe) -> None:
    """Draws what is missing of the datasets that are built in."""
    for dataset, folder in zip(recipe.datasets, folders(recipe), strict=True):
        if count := ensure(dataset.folder_path, workspace(recipe).own):
            logger.info("ingest: drew %d images into %s", count, folder)


def _discover(recipe: Recipe) -> list[Discovery]:
    """What each dataset holds: nothing, where all of a built-in one is still to be drawn."""
    return [
        discover(folder, caption_endings=dataset.caption_ext)
        if is_begun(dataset.folder_path, workspace(recipe).own)
        else Discovery()
        for dataset, folder in zip(recipe.datasets, folders(recipe), strict=True)
    ]


def _known(recipe: Recipe) -> ScanCache:
    """What the dataset's last scan found out; before its first, what other datasets' did."""
    own = _folder(recipe) / "scan.parquet"
    files = [own] if own.exists() else sorted(workspace(recipe).datasets.glob("*/scan.parquet"))
    return ScanCache(map(arrow_source, files))


def _unread(found: Sequence[Discovery], known: ScanCache) -> list[tuple[Source, Examine]]:
    """The files to read, each once."""
    work: dict[tuple[str, int], tuple[Source, Examine]] = {}
    for image in (image for discovery in found for image in discovery.images):
        if known.get(image.image) is None:
            work[image.image.path, image.image.offset] = image.image, examine_image
        if image.caption is not None and known.get(image.caption) is None:
            work[image.caption.path, image.caption.offset] = image.caption, examine_caption
    return list(work.values())


def _read(found: Sequence[Discovery], known: ScanCache, scan_path: AnyPath, stop: StopFlag) -> None:
    """Scans what is new or edited; keeps what was learnt every few seconds and however it ends."""
    work = _unread(found, known)
    if not work and scan_path.exists():
        return
    images = (image for discovery in found for image in discovery.images)
    sources = [source for image in images for source in (image.image, image.caption) if source is not None]

    def save() -> float:
        buffer = io.BytesIO()
        known.save(buffer, sources)
        write_atomic(scan_path, buffer.getbuffer())
        return time.monotonic()

    saved, num_bytes = time.monotonic(), 0
    try:
        if not work:
            return
        with progress("reading", len(work)) as meter, closing(scan(work)) as scanned:
            for source, result in scanned:
                known.put(source, result)
                num_bytes += source.num_bytes
                meter.advance(read=human_bytes(num_bytes))
                _obey(stop)
                if time.monotonic() - saved > SAVE_SCAN_EVERY_S:
                    saved = save()
    finally:
        save()


def _missing_shards(recipe: Recipe, layout: Layout) -> list[Shard]:
    sizes = sizes_in(workspace(recipe).images)
    return [shard for shard in layout.shards if sizes.get(shard.name) != shard.num_bytes]


def _write(folder: AnyPath, shards: Sequence[Shard], stop: StopFlag) -> int:
    """Writes shards, each whole or not at all; returns the number of bytes."""
    if not shards:
        return 0

    def write(shard: Shard) -> tuple[int, int]:
        _obey(stop)
        with atomic_path(folder / shard.name) as temporary:
            return len(shard.images), write_shard(temporary, shard)

    written = 0
    with (
        progress("packing", sum(len(shard.images) for shard in shards)) as meter,
        ThreadPoolExecutor(_WRITERS, "pack") as threads,
    ):
        futures = [threads.submit(write, shard) for shard in shards]
        try:
            for future in as_completed(futures):
                num_images, num_bytes = future.result()
                written += num_bytes
                meter.advance(num_images, written=human_bytes(written))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return written


def _obey(stop: StopFlag) -> None:
    if stop:
        raise Interrupted("Ingest was stopped.", fix="run the same command again: it goes on from here")


def _current(recipe: Recipe) -> Snapshot | None:
    """The snapshot before this run; a damaged one is made anew, like one that is not there."""
    try:
        return current(workspace(recipe).datasets, dataset_key(recipe))
    except (DataError, StoreError) as error:
        if isinstance(error, StoreError):
            logger.warning("%s It is made anew.", error.what)
        return None


def _num_changed(before: Snapshot | None, after: Snapshot, rewritten: Sequence[Shard]) -> int:
    """How many samples are new or edited; where none is, how many lie in shards that had gone missing."""
    if before is None:
        return len(after.samples)
    changes = diff(before, after)
    if changed := len(changes.added) + len(changes.edited):
        return changed
    if changes.removed:
        return 0
    names = {shard.name for shard in rewritten}
    return sum(sample.shard in names for sample in after.samples)


def _tell(layout: Layout, report_path: AnyPath) -> None:
    """Shows how the buckets are filled and what was left out, and writes it beside the snapshot."""
    snapshot = layout.snapshot
    rows = bucket_rows(snapshot.samples)
    console.print(bucket_table(rows))
    if layout.notes:
        logger.info("ingest: %s", ", ".join(f"{count} {name}" for name, count in layout.notes.items()))
    for entry in snapshot.quarantined[:_REASONS_LOGGED]:
        logger.warning("left out: %s: %s", entry.source, entry.reason)
    if len(snapshot.quarantined) > _REASONS_LOGGED:
        rest = len(snapshot.quarantined) - _REASONS_LOGGED
        logger.warning("left out: %d more, listed in %s", rest, report_path)
    write_json(
        report_path,
        {
            "snapshot": snapshot.id,
            "samples": len(snapshot.samples),
            "notes": dict(layout.notes),
            "buckets": [dataclasses.asdict(row) for row in rows],
            "quarantined": [dataclasses.asdict(entry) for entry in snapshot.quarantined],
        },
    )


if __name__ == "__main__":
    from stages import cli

    cli.main(["ingest", *sys.argv[1:]])

"""Snapshots: the manifest of a dataset at one moment, a row a sample, named by a digest of its rows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from eridiff.errors import DataError, StoreError
from eridiff.store.files import digest_bytes, digest_json, write_atomic, write_json
from eridiff.store.paths import AnyPath

_VERSION = 1
_KEY_LENGTH = 16
_NOT_IDENTITY = ("shard", "source")
"""Columns that a rename or a new shard layout changes: they are no part of a snapshot's id."""


@dataclass(frozen=True)
class Sample:
    """One image of a dataset in one bucket.

    Attributes:
        sample_id: its name in shards, orders and reports; see `sample_ids`.
        content: sha256 of the file's bytes.
        captions: at least one; each may be drawn.
        width: px, after EXIF orientation; height alike.
        resized_width: px of the whole image before it is cropped; resized_height alike.
        crop_left: px of the resized image that are cut off on the left; crop_top alike.
        bucket_width: px of the crop, which is what is encoded; bucket_height alike.
        flip: whether a mirrored copy may be drawn too.
        split: trained on, or held out.
        repeats: times it is seen in an epoch.
        shard: file name of its tar among the image shards.
        source: the path as the user knows it.
        dataset: index of its section in the recipe.
    """

    sample_id: str
    content: str
    captions: tuple[str, ...]
    width: int
    height: int
    resized_width: int
    resized_height: int
    crop_left: int
    crop_top: int
    bucket_width: int
    bucket_height: int
    flip: bool
    split: Literal["train", "holdout"]
    repeats: int
    shard: str
    source: str
    dataset: int

    def latent_key(self, mirrored: bool) -> str:
        """The key of its latents: what pixels are encoded, whatever the image is called."""
        return (
            f"{self.content}-{self.resized_width}x{self.resized_height}"
            f"+{self.crop_left}+{self.crop_top}-{self.bucket_width}x{self.bucket_height}"
            f"{'-mirrored' if mirrored else ''}"
        )

    def latent_keys(self) -> tuple[str, ...]:
        """Keys of all latents that may be drawn for it: plain, and mirrored where it may be flipped."""
        return (self.latent_key(False), self.latent_key(True)) if self.flip else (self.latent_key(False),)


_SAMPLE_SCHEMA = pa.schema(
    [
        pa.field(
            field.name,
            {
                "str": pa.string(),
                "int": pa.int64(),
                "bool": pa.bool_(),
                "tuple[str, ...]": pa.list_(pa.string()),
            }.get(str(field.type), pa.string()),
        )
        for field in dataclasses.fields(Sample)
    ]
)


@dataclass(frozen=True)
class Quarantined:
    """A file that cannot be used, and why."""

    source: str
    reason: str


def text_key(caption: str) -> str:
    """The key of a caption's embedding: the sha256 of its UTF-8 text."""
    return digest_bytes(caption.encode())


def sample_ids(stems: Iterable[str]) -> list[str]:
    """Distinct ids for `<content[:20]>-<width>x<height>` stems: the nth repetition of a stem gets `.n`.

    A file's name has no part in it, so renaming a file changes nothing downstream.
    """
    counts: dict[str, int] = {}
    ids = []
    for stem in stems:
        number = counts.get(stem, 0)
        counts[stem] = number + 1
        ids.append(f"{stem}.{number}" if number else stem)
    return ids


@dataclass(frozen=True)
class Snapshot:
    """A dataset at one moment.

    Attributes:
        samples: sorted by sample id.
        quarantined: files left out.
    """

    samples: tuple[Sample, ...]
    quarantined: tuple[Quarantined, ...] = ()

    def __post_init__(self) -> None:
        """Puts samples in canonical order and refuses ids given twice."""
        object.__setattr__(self, "samples", tuple(sorted(self.samples, key=lambda s: s.sample_id)))
        if len({sample.sample_id for sample in self.samples}) < len(self.samples):
            raise ValueError("sample ids of a snapshot must be distinct")

    @cached_property
    def id(self) -> str:
        """The digest of its samples, whatever the shard layout and the files' names."""
        return digest_json([_VERSION, [_identity(sample) for sample in self.samples]])

    @cached_property
    def train(self) -> tuple[Sample, ...]:
        """Samples that are trained on."""
        return tuple(sample for sample in self.samples if sample.split == "train")

    @cached_property
    def holdout(self) -> tuple[Sample, ...]:
        """Samples that are held out."""
        return tuple(sample for sample in self.samples if sample.split == "holdout")

    def save(self, folder: AnyPath) -> AnyPath:
        """Writes `<folder>/<id>.parquet`, whole or not at all; returns its path.

        Raises:
            StoreError: the disk is full.
        """
        columns = {name: [getattr(sample, name) for sample in self.samples] for name in _SAMPLE_SCHEMA.names}
        quarantined = json.dumps([dataclasses.asdict(entry) for entry in self.quarantined])
        schema = _SAMPLE_SCHEMA.with_metadata({"eridiff": self.id, "quarantined": quarantined})
        path = folder / f"{self.id}.parquet"
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd")
        write_atomic(path, memoryview(sink.getvalue()))
        return path

    @classmethod
    def load(cls, path: AnyPath) -> Snapshot:
        """The snapshot in a file that `save` wrote.

        Raises:
            StoreError: the file cannot be read, or its rows are not those of its name.
        """
        try:
            table = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read(use_threads=False)
            notes = table.schema.metadata or {}
            samples = tuple(
                Sample(**{**row, "captions": tuple(row["captions"])}) for row in table.to_pylist()
            )
            quarantined = tuple(
                Quarantined(**entry) for entry in json.loads(notes.get(b"quarantined", b"[]"))
            )
            snapshot = cls(samples, quarantined)
            found = snapshot.id
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            raise _damaged(path, str(error)) from error
        if found != path.stem:
            raise _damaged(path, f"rows with digest {found}")
        return snapshot


@dataclass(frozen=True)
class SnapshotDiff:
    """What changed from one snapshot to the next.

    Attributes:
        added: samples of the new one whose content and source are new.
        edited: samples of the new one with other pixels, captions, crop, split or repeats than before.
        removed: samples of the old one that are gone.
    """

    added: tuple[Sample, ...]
    edited: tuple[Sample, ...]
    removed: tuple[Sample, ...]


def diff(before: Snapshot, after: Snapshot) -> SnapshotDiff:
    """What changed; a renamed file is no change."""
    old = {sample.sample_id: sample for sample in before.samples}
    new = {sample.sample_id: sample for sample in after.samples}
    kept = [sample for name, sample in new.items() if name in old]
    arrived = [sample for name, sample in new.items() if name not in old]
    gone = [sample for name, sample in old.items() if name not in new]
    left, entered = {_place(sample) for sample in gone}, {_place(sample) for sample in arrived}
    return SnapshotDiff(
        added=tuple(sample for sample in arrived if _place(sample) not in left),
        edited=(
            *(sample for sample in kept if _identity(sample) != _identity(old[sample.sample_id])),
            *(sample for sample in arrived if _place(sample) in left),
        ),
        removed=tuple(sample for sample in gone if _place(sample) not in entered),
    )


def dataset_key(description: Mapping[str, Any]) -> str:
    """The key of a dataset: a digest of the JSON-able recipe sections that decide its snapshots."""
    return digest_json(description)


def dataset_folder(datasets: AnyPath, key: str) -> AnyPath:
    """Where a dataset's scan and snapshots lie."""
    return datasets / key[:_KEY_LENGTH]


def save_current(datasets: AnyPath, key: str, snapshot: Snapshot) -> AnyPath:
    """Writes the snapshot and makes it the dataset's current one; returns its path."""
    folder = dataset_folder(datasets, key)
    path = snapshot.save(folder / "snapshots")
    write_json(folder / "current.json", {"snapshot": snapshot.id})
    return path


def current(datasets: AnyPath, key: str) -> Snapshot:
    """The current snapshot of a dataset.

    Raises:
        DataError: there is none yet.
        StoreError: it is damaged.
    """
    folder = dataset_folder(datasets, key)
    pointer = folder / "current.json"
    try:
        name = json.loads(pointer.read_bytes())["snapshot"]
    except FileNotFoundError as error:
        raise DataError(
            "These images have not been ingested yet.",
            where=folder,
            fix="run `eridiff ingest` with this recipe first",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(pointer, str(error)) from error
    return Snapshot.load(folder / "snapshots" / f"{name}.parquet")


def _identity(sample: Sample) -> dict[str, Any]:
    row = {field.name: getattr(sample, field.name) for field in dataclasses.fields(Sample)}
    return {name: value for name, value in row.items() if name not in _NOT_IDENTITY}


def _place(sample: Sample) -> tuple[int, str]:
    return sample.dataset, sample.source


def _damaged(path: AnyPath, found: str) -> StoreError:
    return StoreError(
        "A snapshot cannot be read.",
        where=path,
        found=found,
        fix="delete this file and run `eridiff ingest` again: it makes the snapshot anew",
    )

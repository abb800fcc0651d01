"""Image shards: webdataset tars of original image files and captions, each named by what is in it.

Which image lies in which shard is a pure function of the set of images, whatever the order in which they
came: the images are a binary tree by the bits of their digests, and a shard is the largest branch with at
most `shard_images` of them. So adding, editing or removing an image changes one shard (or splits one, or
joins two halves into one), and all others keep their names and bytes.

A sample is `<key>.<format>`, the user's own bytes, and `<key>.txt`, the caption file's own text before
trigger words: so an edited caption file rewrites its shard, and a new trigger word, resolution or repeat
count rewrites none. webdataset writes them, without times or owners: equal samples give equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypeVar

from eridiff.errors import DataError, StoreError
from eridiff.images.sources import READ_FLAGS, Source, read_source

LAYOUT = "eridiff image shard 2"
"""Changes when equal samples would give other bytes: part of every shard's name."""

KEY_DIGITS = 20
_DIGEST_BITS = 256


@dataclass(frozen=True, slots=True)
class ShardImage:
    """One sample of a shard.

    Attributes:
        content: sha256 of the image file's bytes.
        extension: the image's format, e.g. `jpg`.
        caption: the text of its caption file, or the dataset's default.
        source: where the bytes lie.
    """

    content: str
    extension: str
    caption: str
    source: Source

    @property
    def identity(self) -> tuple[str, str, str]:
        """What distinguishes samples, and sorts them; the source is only where to read."""
        return self.content, self.extension, self.caption


@dataclass(frozen=True)
class Shard:
    """A tar that is to be there.

    Attributes:
        name: file name, a digest of the samples and the layout.
        images: its samples, sorted and distinct.
    """

    name: str
    images: tuple[ShardImage, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the tar: a header and whole blocks for each file, two empty blocks, whole records."""
        sizes = [
            size for image in self.images for size in (image.source.num_bytes, len(image.caption.encode()))
        ]
        blocks = sum(1 + -(-size // tarfile.BLOCKSIZE) for size in sizes) + 2
        return -(-blocks * tarfile.BLOCKSIZE // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def plan_shards(images: Iterable[ShardImage], *, shard_images: int) -> list[Shard]:
    """The shards that hold `images`, sorted by digest; equal images with equal captions are kept once."""
    distinct = {image.identity: image for image in images}
    ordered = [distinct[identity] for identity in sorted(distinct)]
    return [_named(branch) for branch in _branches(ordered, 0, shard_images)]


def _branches(ordered: Sequence[ShardImage], depth: int, limit: int) -> Iterator[Sequence[ShardImage]]:
    if not ordered:
        return
    if len(ordered) <= limit or depth == _DIGEST_BITS:
        yield ordered
        return
    ones = [int(image.content, 16) >> (_DIGEST_BITS - 1 - depth) & 1 for image in ordered]
    middle = len(ones) - sum(ones)  # sorted by digest: those with a 0 here come first
    yield from _branches(ordered[:middle], depth + 1, limit)
    yield from _branches(ordered[middle:], depth + 1, limit)


def _named(images: Sequence[ShardImage]) -> Shard:
    digest = hashlib.sha256(LAYOUT.encode())
    for image in images:
        content, extension, caption = image.identity
        digest.update(f"\n{content} {extension} {hashlib.sha256(caption.encode()).hexdigest()}".encode())
    return Shard(f"{digest.hexdigest()[:32]}.tar", tuple(images))


def write_shard(path: Path, shard: Shard) -> int:
    """Writes a shard's bytes to `path`; returns how many.

    Raises:
        OSError: the disk is full.
        DataError: a user's file changed since it was scanned, or is gone.
    """
    from webdataset.writer import TarWriter  # brings torch along: only where something is to be written

    with (
        path.open("wb") as file,
        TarWriter(file, user="", group="", mode=0o444, mtime=0, encoder=False, compress=False) as tar,
    ):
        for key, image in _keyed(shard):
            tar.write(
                {"__key__": key, image.extension: _bytes_of(image.source), "txt": image.caption.encode()}
            )
    return path.stat().st_size


def _bytes_of(source: Source) -> bytes:
    try:
        return read_source(source)
    except OSError as error:
        raise DataError(
            "An image can no longer be read.",
            where=source.name,
            found=error.strerror or str(error),
            fix="run the same command again: it looks at the files anew",
        ) from error


def _keyed(shard: Shard) -> Iterator[tuple[str, ShardImage]]:
    """Each image with its key; equal images with other captions are numbered."""
    previous, nth = "", 0
    for image in shard.images:
        nth = nth + 1 if image.content == previous else 0
        previous = image.content
        yield image.content[:KEY_DIGITS] + (f"-{nth}" if nth else ""), image


class InShard(Protocol):
    """Whatever says which image of which shard it is: `eridiff.store` samples do."""

    @property
    def content(self) -> str:
        """Sha256 of the image file."""
        ...

    @property
    def shard(self) -> str:
        """File name of the shard."""
        ...


Sample = TypeVar("Sample", bound=InShard)


class Folder(Protocol):
    """Where shards lie: a path, or something that `opened` makes one of."""

    def __truediv__(self, name: str, /) -> Any:
        """A file in it."""
        ...


def read_images(
    folder: Folder,
    samples: Iterable[Sample],
    *,
    opened: Callable[[Any], AbstractContextManager[Path]] = nullcontext,
) -> Iterator[tuple[Sample, bytes]]:
    """Each sample with the bytes of its image file, in the order given, proved by their digest.

    Only what is asked for is read. Samples sorted by shard and content are read from front to back.

    Args:
        folder: where the shards lie.
        samples: the samples wanted.
        opened: gives a path on this machine to read a shard at, as long as its block lasts.

    Raises:
        StoreError: a shard is missing or damaged.
    """
    places: dict[str, dict[str, tuple[int, int]]] = {}
    for name, group in groupby(samples, key=lambda sample: sample.shard):
        shard = folder / name
        try:
            with opened(shard) as path:
                if name not in places:
                    places[name] = _index(path, shard)
                for sample in group:
                    yield sample, _image(path, shard, places[name], sample.content)
        except FileNotFoundError as error:
            raise StoreError(
                "An image shard is missing.", where=shard, fix="run `eridiff ingest` again"
            ) from error


def _image(path: Path, shard: object, places: Mapping[str, tuple[int, int]], content: str) -> bytes:
    place = places.get(content[:KEY_DIGITS])
    if place is None:
        raise _damaged(shard, f"no image {content[:KEY_DIGITS]}")
    data = _read_at(path, *place)
    if hashlib.sha256(data).hexdigest() != content:
        raise _damaged(shard, f"other bytes for image {content[:KEY_DIGITS]}")
    return data


def _index(path: Path, shard: object) -> dict[str, tuple[int, int]]:
    """Offset and size of each image in a shard, by key."""
    try:
        with tarfile.open(path, "r:") as tar:
            return {
                member.name.partition(".")[0]: (member.offset_data, member.size)
                for member in tar
                if not member.name.endswith(".txt")
            }
    except tarfile.TarError as error:
        raise _damaged(shard, str(error)) from error


def _read_at(path: Path, offset: int, size: int) -> bytes:
    descriptor = os.open(path, READ_FLAGS)
    try:
        os.lseek(descriptor, offset, os.SEEK_SET)
        with io.FileIO(descriptor, closefd=False) as file:
            return file.read(size)
    finally:
        os.close(descriptor)


def _damaged(shard: object, found: str) -> StoreError:
    fix = "delete that file and run `eridiff ingest` again"
    return StoreError("An image shard is damaged.", where=shard, found=found, fix=fix)

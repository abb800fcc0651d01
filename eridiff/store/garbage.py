"""What nothing needs any more, by reachability from snapshots in use and from spaces in use.

Nothing goes because it is old: an item stays as long as any snapshot, prompt or space in use leads to it. Age
only protects what a process at work may have written a moment ago.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from eridiff.store.parts import TensorStore
from eridiff.store.paths import AnyPath, all_in, folders_in
from eridiff.store.paths import remove as remove_path
from eridiff.store.snapshots import Snapshot, text_key
from eridiff.store.workspace import Workspace


@dataclass(frozen=True)
class InUse:
    """The roots of reachability.

    Attributes:
        snapshots: ids of snapshots that are current, or that a kept run or version was made of.
        spaces: digests of spaces that a recipe or a kept run means.
        prompts: texts that are sampled from, whatever the images.
    """

    snapshots: frozenset[str]
    spaces: frozenset[str]
    prompts: frozenset[str]


@dataclass(frozen=True)
class Garbage:
    """Something that can go.

    Attributes:
        what: `snapshot`, `image shard`, `latents`, `text` or `run`.
        why: for people.
        paths: files or folders, in the order in which they must be removed.
    """

    what: str
    why: str
    paths: tuple[AnyPath, ...]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(_size(path) for path in self.paths)


def find_garbage(place: Workspace, used: InUse, *, min_age_s: float) -> list[Garbage]:
    """Everything below `data/` that is unreachable and old enough.

    Args:
        place: where it lies.
        used: what is needed.
        min_age_s: younger files stay.

    Raises:
        StoreError: a snapshot in use is damaged: what it leads to is unknown, so nothing may go.
    """
    files = {path.stem: path for path in sorted(place.datasets.glob("*/snapshots/*.parquet"))}
    kept = [Snapshot.load(path) for name, path in files.items() if name in used.snapshots]
    samples = [sample for snapshot in kept for sample in snapshot.samples]
    shards = {sample.shard for sample in samples}
    latents = frozenset(key for sample in samples for key in sample.latent_keys())
    captions = {caption for sample in samples for caption in sample.captions}
    text = frozenset(map(text_key, captions | used.prompts))
    found = [
        *_snapshots(files, used),
        *_shards(place.images, shards),
        *_parts(place.latents, "latents", used, latents),
        *_parts(place.text, "text", used, text),
    ]
    return [garbage for garbage in found if _old(garbage.paths, min_age_s)]


def remove(garbage: Iterable[Garbage]) -> None:
    """Removes it; what is gone already is no error.

    Raises:
        StoreError: removing is not possible or not allowed somewhere; what came before is gone.
    """
    for path in (path for one in garbage for path in one.paths):
        remove_path(path)


def _snapshots(files: dict[str, AnyPath], used: InUse) -> Iterator[Garbage]:
    for name, path in files.items():
        if name not in used.snapshots:
            report = path.with_suffix(".report.json")
            yield Garbage("snapshot", "superseded, and no kept run was made of it", (path, report))


def _shards(images: AnyPath, used: set[str]) -> Iterator[Garbage]:
    for path in sorted(images.glob("*.tar")):
        if path.name not in used:
            yield Garbage("image shard", "no snapshot in use names it", (path,))


def _parts(root: AnyPath, what: str, used: InUse, keys: frozenset[str]) -> Iterator[Garbage]:
    for folder in folders_in(root):
        if folder.name not in used.spaces:
            yield Garbage(what, "a space that no recipe or run means any more", (folder,))
            continue
        store = TensorStore(root, folder.name)
        for part, held in sorted(store.keys_by_part().items()):
            if not held & keys:
                yield Garbage(
                    what, "no snapshot in use leads to an item of this part", store.part_files(part)
                )


def _old(paths: tuple[AnyPath, ...], min_age_s: float) -> bool:
    return all(time.time() - _newest(path) >= min_age_s for path in paths)


def _newest(path: AnyPath) -> float:
    times = [0.0]
    for file in all_in(path):
        with suppress(FileNotFoundError):
            times.append(file.stat().st_mtime)
    return max(times)


def _size(path: AnyPath) -> int:
    total = 0
    for file in all_in(path):
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total

"""`eridiff verify`: every byte is read again, and whatever is not as it was written is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from eridiff.errors import EridiffError
from eridiff.images.shards import read_images
from eridiff.registry import Registry, names
from eridiff.store.parts import TensorStore
from eridiff.store.paths import folders_in, opened_anew
from eridiff.store.snapshots import Snapshot
from eridiff.store.tensorfile import holds_tensors
from eridiff.store.workspace import Workspace
from stages.reclaim import Places, all_runs, current_snapshots
from stages.stage import progress

Read = TypeVar("Read")
_TRAIN = "run `eridiff train` with its recipe"


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written, and what makes it anew."""

    where: str
    what: str
    fix: str


def faults(places: Places) -> list[Fault]:
    """Everything that is not as it was written; every byte is read again."""
    return [
        *_faulty_datasets(places.workspace),
        *_faulty_stores(places.workspace),
        *_faulty_runs(places.workspace.runs),
        *_faulty_versions(places.registry),
    ]


def _faulty_datasets(place: Workspace) -> Iterator[Fault]:
    again = "run `eridiff ingest` with its recipe"
    for path in sorted(place.datasets.glob("*/snapshots/*.parquet")):
        snapshot, fault = _tried(lambda path=path: Snapshot.load(path), str(path), again)
        if fault:
            yield fault
        elif snapshot and snapshot.id in set(current_snapshots(place.datasets)):
            _, fault = _tried(lambda held=snapshot: _read_all(place, held), str(place.images), again)
            if fault:
                yield fault


def _read_all(place: Workspace, snapshot: Snapshot) -> None:
    with progress("images", len(snapshot.samples)) as meter:
        for _ in read_images(place.images, snapshot.samples, opened=opened_anew):
            meter.advance()


def _faulty_stores(place: Workspace) -> Iterator[Fault]:
    for root in (place.latents, place.text):
        for folder in folders_in(root):
            for damage in TensorStore(root, folder.name).verify():
                where = f"{folder}, part {damage.part}" + (f", item {damage.key}" if damage.key else "")
                yield Fault(where, damage.reason, "run `eridiff precompute` with its recipe")


def _faulty_runs(root: Path) -> Iterator[Fault]:
    for run in all_runs(root):
        if not run.sealed:
            continue
        seal, fault = _tried(run.read_seal, str(run.folder), f"delete it and {_TRAIN}")
        if fault:
            yield fault
        elif seal and not holds_tensors(run.lora_file(), seal["lora_tensors"]):
            yield _faulty_lora(run.lora_file())


def _faulty_lora(path: Path) -> Fault:
    """A LoRA file that is not what its run made; a training that has its checkpoints exports it again."""
    if not path.exists():
        return Fault(str(path), "missing", _TRAIN)
    return Fault(str(path), "not the file that was sealed", f"delete {path.name} and {_TRAIN}")


def _faulty_versions(root: Path) -> Iterator[Fault]:
    for name in names(root):
        registry = Registry(root, name)
        history, fault = _tried(registry.history, str(root / f"{name}.json"), "restore it from a backup")
        if fault:
            yield fault
            continue
        for version in history.versions if history else ():
            path = registry.file(version)
            if path.exists() and not holds_tensors(path, version.sha256):
                yield Fault(
                    str(path), "not the file that was promoted", f"copy {version.verdict.source} there"
                )
        if not registry.is_served():
            yield Fault(f"{history and history.served}", "not the champion", "run `eridiff publish`")


def _tried(read: Callable[[], Read], where: str, fix: str) -> tuple[Read | None, Fault | None]:
    try:
        return read(), None
    except EridiffError as error:
        return None, Fault(str(error.where or where), f"{error.what} {error.found or ''}".strip(), fix)

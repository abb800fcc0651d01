"""Image shards that nothing names any more: an edit makes a new one, and the old would lie about for ever."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

import pyarrow.parquet as pq

from eridiff.store.paths import AnyPath, arrow_source, folders_in, sizes_in
from eridiff.store.workspace import Workspace

logger = logging.getLogger("eridiff")


def remove_superseded(place: Workspace, dataset: AnyPath) -> int:
    """Removes shards that a dataset's older snapshots name and no current snapshot does; returns how many.

    Shards that no snapshot names stay: another process may be about to write the snapshot that does.

    Args:
        place: where all datasets and shards lie.
        dataset: folder of the dataset that has just been brought up to date.
    """
    present = {name for name in sizes_in(place.images) if name.endswith(".tar")}
    candidates = present & _shards_of((dataset / "snapshots").glob("*.parquet"))
    if not candidates:
        return 0
    removed = candidates - _shards_of(
        path for folder in folders_in(place.datasets) for path in _snapshots_in_use(folder)
    )
    for name in removed:
        (place.images / name).unlink(missing_ok=True)
    return len(removed)


def _snapshots_in_use(dataset: AnyPath) -> Iterable[AnyPath]:
    """The current snapshot of a dataset, or all of them where it cannot be told which that is."""
    snapshots = dataset / "snapshots"
    try:
        current = snapshots / f"{json.loads((dataset / 'current.json').read_bytes())['snapshot']}.parquet"
    except (OSError, ValueError, KeyError, TypeError):
        return snapshots.glob("*.parquet")
    return [current] if current.exists() else snapshots.glob("*.parquet")


def _shards_of(snapshots: Iterable[AnyPath]) -> set[str]:
    names: set[str] = set()
    for path in snapshots:
        try:
            names.update(pq.read_table(arrow_source(path), columns=["shard"])["shard"].to_pylist())
        except (OSError, ValueError, KeyError):  # a damaged snapshot is told where it is used
            logger.warning("%s cannot be read; its shards are left alone", path)
    return names

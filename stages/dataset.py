"""Which dataset a recipe names, and its current snapshot: the way from `ingest` to the later stages."""

from __future__ import annotations

from pathlib import Path

from eridiff.demo.dataset import folder_of
from eridiff.encoding.spaces import workspace
from eridiff.recipe import Recipe
from eridiff.store import snapshots
from eridiff.store.snapshots import Snapshot


def folders(recipe: Recipe) -> list[Path]:
    """The folder, or tar, of each of a recipe's datasets.

    Raises:
        DataError: one is said to be built in, and is not.
    """
    return [folder_of(dataset.folder_path, workspace(recipe).own) for dataset in recipe.datasets]


def dataset_key(recipe: Recipe) -> str:
    """The key of a recipe's dataset: a digest of the sections that decide its snapshot."""
    datasets = [
        {**dataset.model_dump(mode="json"), "folder_path": _named(dataset.folder_path, folder)}
        for dataset, folder in zip(recipe.datasets, folders(recipe), strict=True)
    ]
    return snapshots.dataset_key(
        {
            "datasets": datasets,
            "ingest": recipe.ingest.model_dump(mode="json"),
            "trigger_word": recipe.trigger_word,
        }
    )


def _named(folder_path: Path, folder: Path) -> str:
    """What a dataset is known by: a built-in one by its name, wherever it is drawn."""
    return str(folder.absolute() if folder == folder_path else folder_path)


def current_snapshot(recipe: Recipe) -> Snapshot:
    """The snapshot that the last `ingest` of a recipe made.

    Raises:
        DataError: there is none yet.
        StoreError: it is damaged.
    """
    return snapshots.current(workspace(recipe).datasets, dataset_key(recipe))

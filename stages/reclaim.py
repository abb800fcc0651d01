"""`eridiff gc`: what nothing leads to any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eridiff.encoding.spaces import remembered
from eridiff.encoding.wanted import EMPTY_PROMPT, prompts_of
from eridiff.recipe import Recipe
from eridiff.registry import Registry, Verdict, names
from eridiff.store.files import read_json
from eridiff.store.garbage import Garbage, InUse, find_garbage
from eridiff.store.paths import AnyPath
from eridiff.store.runs import Run, latest
from eridiff.store.workspace import Workspace
from stages import pipeline

_FIX_RUN = "delete the run's folder, or train it again"


@dataclass(frozen=True)
class Places:
    """Folders that are kept house in."""

    workspace: Workspace
    registry: Path


def garbage(places: Places, recipes: Sequence[Recipe], *, old_runs: bool, min_age_s: float) -> list[Garbage]:
    """What can go: unreachable from current snapshots, kept runs, the registry and the given recipes.

    Args:
        places: where to look.
        recipes: recipes that were not trained yet, whose prompts are to stay embedded.
        old_runs: whether runs go that are neither the newest of their name nor a version of the registry.
        min_age_s: younger files stay: a process at work may have written them a moment ago.

    Raises:
        StoreError: a snapshot, a run or a history is damaged: what it needs is unknown, so nothing may go.
    """
    runs = list(all_runs(places.workspace.runs))
    versions = [
        version.verdict
        for name in names(places.registry)
        for version in Registry(places.registry, name).history().versions
    ]
    registered = {verdict.run for verdict in versions}
    dropped = [run for run in runs if old_runs and run.id not in registered and latest(run.root) != run]
    used = _in_use(places.workspace, [run for run in runs if run not in dropped], versions, recipes)
    why = "neither the newest of its name nor registered"
    found = [Garbage("run", why, (run.folder,)) for run in dropped]
    return found + find_garbage(places.workspace, used, min_age_s=min_age_s)


def _in_use(
    place: Workspace, runs: Sequence[Run], versions: Sequence[Verdict], recipes: Sequence[Recipe]
) -> InUse:
    made_of = [read_json(run.environment, fix=_FIX_RUN)["provenance"] for run in runs]
    trained = [pipeline.load_recipe(run.recipe) for run in runs]
    snapshots = {made["snapshot"] for made in made_of} | {verdict.snapshot for verdict in versions}
    spaces = {made[kind] for made in made_of for kind in ("latents", "text")}
    prompts = {prompt for recipe in (*trained, *recipes) for prompt in prompts_of(recipe)}
    return InUse(
        frozenset(snapshots.union(current_snapshots(place.datasets))),
        remembered(place.data) | spaces,
        frozenset(prompts | {EMPTY_PROMPT}),
    )


def all_runs(root: Path) -> Iterator[Run]:
    """Every run below a folder of runs that began to train."""
    for path in sorted(root.glob("*/*/environment.json")):
        yield Run(path.parents[1], path.parent.name)


def current_snapshots(datasets: AnyPath) -> Iterator[str]:
    """Ids of the current snapshots of all datasets."""
    for pointer in sorted(datasets.glob("*/current.json")):
        yield read_json(pointer, fix="run `eridiff ingest` with its recipe")["snapshot"]

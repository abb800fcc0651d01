"""`eridiff watch`: looks at a recipe's folders and tells Prefect when they changed and then lay quiet."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from eridiff.errors import EridiffError, RecipeError
from eridiff.recipe import Recipe
from eridiff.store.files import digest_json
from stages.stage import stopping

logger = logging.getLogger("eridiff")

EVENT = "eridiff.dataset.changed"


def watch(recipe: Recipe, config: Path, *, quiet_s: float, every_s: float) -> None:
    """Emits an event for every change of the recipe's folders, until SIGINT or SIGTERM.

    Images that were changed while nobody watched count as a change at the start.

    Args:
        recipe: whose `datasets` are watched.
        config: its file, told with the event, so that the flow knows what to train.
        quiet_s: seconds without a change before it is told: a copy under way is not.
        every_s: seconds between looks.

    Raises:
        RecipeError: no server is named.
        EridiffError: the server did not take the event.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise RecipeError(
            "No Prefect server is named.",
            where="PREFECT_API_URL",
            fix="export PREFECT_API_URL=http://127.0.0.1:4200/api, or what `eridiff serve` says",
        )
    folders = [dataset.folder_path for dataset in recipe.datasets]
    logger.info("Watching %s", ", ".join(map(str, folders)))
    with stopping() as stop:
        seen = "" if _is_behind(recipe) else fingerprint(folders)
        for _ in changes(
            lambda: fingerprint(folders), seen, quiet_s=quiet_s, every_s=every_s, stop=lambda: bool(stop)
        ):
            emit(recipe, config)


def changes(
    look: Callable[[], str],
    seen: str,
    *,
    quiet_s: float,
    every_s: float,
    stop: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Each new look, once it has stayed the same for `quiet_s` seconds."""
    last, since = seen, clock()
    while not stop():
        now = look()
        if now != last:
            last, since = now, clock()
        elif now != seen and clock() - since >= quiet_s:
            seen = now
            yield now
        sleep(every_s)


def fingerprint(folders: Sequence[Path]) -> str:
    """A digest of names, sizes and times of all files below the folders, or of archives; none is opened."""
    return digest_json([sorted(_states(folder)) for folder in folders])


def emit(recipe: Recipe, config: Path) -> None:
    """Tells the server that the recipe's images changed.

    Raises:
        EridiffError: it did not take the event.
    """
    payload = {"config": str(config), "folders": [str(dataset.folder_path) for dataset in recipe.datasets]}
    resource = f"eridiff.dataset.{recipe.name}"
    command = [sys.executable, "-m", "prefect", "event", "emit", EVENT, "--resource-id", resource]
    done = subprocess.run([*command, "--payload", json.dumps(payload)], capture_output=True, text=True)
    if done.returncode:
        raise EridiffError("The server did not take the event.", found=done.stdout + done.stderr)
    logger.info("Told %s that the images of %s changed", os.environ["PREFECT_API_URL"], recipe.name)


def _is_behind(recipe: Recipe) -> bool:
    from stages import ingest

    return not ingest.plan(recipe).complete


def _states(place: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of a file, or of each file below a folder; nothing of what went away meanwhile."""
    try:
        if not place.is_dir():
            status = place.stat()
            yield str(place), status.st_size, status.st_mtime_ns
            return
        entries = [Path(entry.path) for entry in os.scandir(place) if not _is_link_to_folder(entry)]
    except FileNotFoundError:
        return
    for entry in entries:
        yield from _states(entry)


def _is_link_to_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and entry.is_dir()  # it may lead back up

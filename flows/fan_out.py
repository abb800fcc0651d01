"""Parts of one piece of work, one after the other or side by side, on the task runner of choice.

The work is cut by item key, so what is stored is the same whatever the number of parts or workers. Parts that
run elsewhere need the recipe's `storage` on a file system that all of them see.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

from prefect import Task
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from eridiff.errors import RecipeError
from flows.tasks import Report, Settings

Workers = Literal["here", "threads", "processes", "dask", "ray"]

_EXTRAS = {"dask": ("prefect_dask", "DaskTaskRunner"), "ray": ("prefect_ray", "RayTaskRunner")}


def each_part(
    part: Task[[str, Settings, int, int], Report],
    config: str,
    settings: Settings,
    *,
    parts: int,
    workers: Workers,
) -> list[Report]:
    """Runs `part` with every (index, count) of `parts`; returns the reports in that order.

    Raises:
        RecipeError: the chosen runner is not installed.
    """
    numbers = range(1, parts + 1)
    if workers == "here":
        return [part(config, settings, index, parts) for index in numbers]
    with _runner(workers, parts) as runner:
        futures = [
            runner.submit(part, {"config": config, "settings": settings, "index": index, "count": parts})
            for index in numbers
        ]
        return [future.result() for future in futures]


def _runner(workers: Workers, parts: int) -> TaskRunner[Any]:
    if workers == "threads":
        return ThreadPoolTaskRunner(max_workers=parts)
    if workers == "processes":
        return ProcessPoolTaskRunner(max_workers=parts)
    module, name = _EXTRAS[workers]
    try:
        return getattr(importlib.import_module(module), name)()
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"Parts cannot run on {workers}: {error.name} is not installed.",
            where="workers",
            fix=f'pip install "eridiff[{workers}]", or choose threads or processes',
        ) from error

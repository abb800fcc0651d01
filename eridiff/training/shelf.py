"""Where the checkpoints of a run stand. Nothing here loads torch."""

from __future__ import annotations

from pathlib import Path

from eridiff.store.runs import Run

_PREFIX = "step-"


def steps_in(run: Run) -> list[int]:
    """Steps of the checkpoints of a run, oldest first; what is still being written is not among them."""
    names = [path.name.removeprefix(_PREFIX) for path in run.checkpoints.glob(f"{_PREFIX}*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal())


def folder_of(run: Run, step: int) -> Path:
    """The folder of the checkpoint of a step: `step-000250`."""
    return run.checkpoints / f"{_PREFIX}{step:06d}"

"""Checkpoints: a folder a step, written aside and renamed, each file with its digest; nothing is pickled.

checkpoints/step-000250/lora.safetensors        trained parameters, float32
                        optimizer.safetensors   tensors of the optimizer's state
                        ema.safetensors         the moving average, where there is one
                        state.json              step, run, the optimizer's scalars, digests of the files
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eridiff.errors import EridiffError, StoreError
from eridiff.store.files import atomic_path, digest_file, digest_json, write_json
from eridiff.training.packing import pack, unpack

logger = logging.getLogger(__name__)
VERSION = 1
_NAME = re.compile(r"step-(\d+)")
_UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped.

    Attributes:
        step: steps made.
        run: id of the run.
        lora: name to trained parameter, float32.
        optimizer: `state_dict()` of the optimizer.
        ema: name to averaged parameter, where the run keeps one.
        extra: JSON-able numbers of the loop.
    """

    step: int
    run: str
    lora: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    ema: Mapping[str, Tensor] | None = None
    extra: Mapping[str, float] = field(default_factory=dict)


def step_name(step: int) -> str:
    """The name of a step's folder, in the order of steps: `step-000250`."""
    return f"step-{step:06d}"


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, oldest first, whole or not."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Writes a checkpoint, then deletes all but the newest `keep`.

    Returns:
        The checkpoint's folder.

    Raises:
        StoreError: the disk is full, or the optimizer keeps what cannot be stored; the older checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.glob(f"{_UNFINISHED}*"):  # only one process writes here
        shutil.rmtree(abandoned)
    aside = folder / f"{_UNFINISHED}{uuid.uuid4().hex[:12]}"
    aside.mkdir()
    try:
        _write(aside, checkpoint)
        final = folder / step_name(checkpoint.step)
        if final.exists():  # damaged, or it would have been resumed from
            shutil.rmtree(final)
        aside.rename(final)
        _flush_folder(folder)
    finally:
        if aside.exists():
            shutil.rmtree(aside)
    for step in steps_in(folder)[:-keep]:
        shutil.rmtree(folder / step_name(step))
    return final


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    try:
        tensors, scalars = pack(checkpoint.optimizer)
    except TypeError as error:
        raise StoreError(
            f"a checkpoint of this optimizer cannot be written: {error}",
            where="train.optimizer",
            fix="use another optimizer",
        ) from error
    files = {"lora": checkpoint.lora, "optimizer": tensors}
    if checkpoint.ema is not None:
        files["ema"] = checkpoint.ema
    digests = {}
    for name, content in files.items():
        path = folder / f"{name}.safetensors"
        with atomic_path(path) as temporary:
            save_file({key: value.detach().cpu().contiguous() for key, value in content.items()}, temporary)
        digests[path.name] = digest_file(path)
    state = {
        "version": VERSION,
        "step": checkpoint.step,
        "run": checkpoint.run,
        "optimizer": scalars,
        "extra": dict(checkpoint.extra),
        "files": digests,
    }
    write_json(folder / "state.json", {**state, "digest": digest_json(state)})


def load(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, every byte checked.

    Raises:
        StoreError: a file is missing, damaged, or of another version.
    """
    try:
        state = json.loads((folder / "state.json").read_bytes())
        if digest_json({key: value for key, value in state.items() if key != "digest"}) != state["digest"]:
            raise _damaged(folder / "state.json", "its digest differs")
        if state["version"] != VERSION:
            raise _damaged(folder / "state.json", f"version {state['version']}, wanted {VERSION}")
        tensors = {}
        for name, digest in state["files"].items():
            if digest_file(folder / name) != digest:
                raise _damaged(folder / name, "its digest differs")
            tensors[name.removesuffix(".safetensors")] = load_file(folder / name)
        return Checkpoint(
            step=state["step"],
            run=state["run"],
            lora=tensors["lora"],
            optimizer=unpack(tensors["optimizer"], state["optimizer"]),
            ema=tensors.get("ema"),
            extra=state["extra"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`; a damaged one is named in a warning and passed over."""
    for checkpoint in whole(folder, reversed(steps_in(folder))):
        return checkpoint
    return None


def whole(folder: Path, steps: Sequence[int] | Iterator[int]) -> Iterator[Checkpoint]:
    """The checkpoints of those steps that are whole; each damaged one is named in a warning."""
    for step in steps:
        try:
            yield load(folder / step_name(step))
        except StoreError as error:
            logger.warning("Checkpoint of step %d cannot be used, the one before is tried.\n%s", step, error)


def _damaged(path: Path, found: str) -> EridiffError:
    return StoreError("A checkpoint is damaged.", where=path, found=found, fix="delete its folder")


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

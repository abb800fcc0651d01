"""Checkpoints: a folder a step, written aside and renamed, each file with its digest; nothing is pickled.

In `checkpoints/step-000250/` lie `lora.safetensors` (the trained parameters, float32),
`optimizer.safetensors` (the tensors of its state), `ema.safetensors` where there is an average,
`start.safetensors` where the LoRA is a change from its start (see `eridiff.lora.principal`), and
`state.json`: step, run, the optimizer's scalars, and the digests of the files.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from eridiff.errors import StoreError
from eridiff.store.files import digest_bytes, digest_file, digest_json, write_atomic, write_json
from eridiff.store.runs import Run
from eridiff.training.packing import pack, unpack
from eridiff.training.shelf import folder_of, steps_in

logger = logging.getLogger(__name__)
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped.

    Attributes:
        step: steps made.
        run: id of the run.
        lora: name to trained parameter, float32.
        optimizer: `state_dict()` of the optimizer.
        ema: name to averaged parameter, where the run keeps one.
        start: name to what a parameter started from, where that counts.
        extra: JSON-able numbers of the loop.
    """

    step: int
    run: str
    lora: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    ema: Mapping[str, Tensor] | None = None
    start: Mapping[str, Tensor] | None = None
    extra: Mapping[str, float] = field(default_factory=dict)


def save(run: Run, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Writes a checkpoint, then deletes all but the newest `keep`.

    Returns:
        The checkpoint's folder.

    Raises:
        StoreError: the disk is full, or the optimizer keeps what cannot be stored; older ones stay.
    """
    final = folder_of(run, checkpoint.step)
    for abandoned in run.checkpoints.glob(".step-*.tmp"):  # only one process writes here
        shutil.rmtree(abandoned)
    aside = run.checkpoints / f".{final.name}.tmp"
    aside.mkdir(parents=True)
    try:
        _write(aside, checkpoint)
        if final.exists():  # damaged, or the run would have gone on from it
            shutil.rmtree(final)
        aside.rename(final)
        _flush(run.checkpoints)
    finally:
        if aside.exists():
            shutil.rmtree(aside)
    for step in steps_in(run)[:-keep]:
        shutil.rmtree(folder_of(run, step))
    return final


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    try:
        tensors, scalars = pack(checkpoint.optimizer)
    except TypeError as error:
        raise StoreError(
            f"A checkpoint of this optimizer cannot be written: {error}.",
            where="train.optimizer",
            fix="use another optimizer",
        ) from error
    files = {"lora": checkpoint.lora, "optimizer": tensors}
    if checkpoint.ema is not None:
        files["ema"] = checkpoint.ema
    if checkpoint.start is not None:
        files["start"] = checkpoint.start
    digests = {}
    for name, content in files.items():
        data = serialize({key: value.detach().cpu().contiguous() for key, value in content.items()})
        write_atomic(folder / f"{name}.safetensors", data)
        digests[f"{name}.safetensors"] = digest_bytes(data)
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
            start=tensors.get("start"),
            extra=state["extra"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def newest(run: Run) -> Checkpoint | None:
    """The newest whole checkpoint of a run; a damaged one is named in a warning and passed over."""
    for step in reversed(steps_in(run)):
        try:
            return load(folder_of(run, step))
        except StoreError as error:
            logger.warning(
                "The checkpoint of step %d cannot be used; trying the one before.\n%s", step, error
            )
    return None


def _damaged(path: Path, found: str) -> StoreError:
    return StoreError("A checkpoint is damaged.", where=path, found=found, fix="delete its folder")

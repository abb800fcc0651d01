"""Run folders: one for each training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eridiff.store.files import read_json, write_json


@dataclass(frozen=True)
class Run:
    """One training: `<root>/<id>`, where `root` is the folder of all runs of a name.

    Attributes:
        root: `runs/<name>`.
        id: the digest of all that decides the training.
    """

    root: Path
    id: str

    @property
    def name(self) -> str:
        """The run's name, as the recipe gives it."""
        return self.root.name

    @property
    def folder(self) -> Path:
        """Where everything of this run lies."""
        return self.root / self.id

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.folder / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Versions and devices that it ran with."""
        return self.folder / "environment.json"

    @property
    def metrics(self) -> Path:
        """A line of JSON for each logged step."""
        return self.folder / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        """Sampled images, grids and reports."""
        return self.folder / "evaluation"

    @property
    def lora(self) -> Path:
        """The folder of LoRA files."""
        return self.folder / "lora"

    def lora_file(self, step: int | None = None) -> Path:
        """The LoRA after `step` steps; the final one where no step is given."""
        ending = "" if step is None else f"-{step:06d}"
        return self.lora / f"{self.name}{ending}.safetensors"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, one for each saved step."""
        return self.folder / "checkpoints"

    @property
    def sealed(self) -> bool:
        """Whether the training ended and everything of it is on disk."""
        return (self.folder / "seal.json").exists()

    @property
    def finished(self) -> bool:
        """Whether the training ended and its LoRA is still there; one that was deleted is exported again."""
        return self.sealed and self.lora_file().exists()

    def seal(self, content: Mapping[str, Any]) -> None:
        """Writes the seal, the last thing of a run."""
        write_json(self.folder / "seal.json", dict(content))

    def read_seal(self) -> dict[str, Any]:
        """What the seal says.

        Raises:
            StoreError: the run is not sealed, or the seal is damaged.
        """
        return read_json(
            self.folder / "seal.json", fix="delete it and run `eridiff train` with this recipe again"
        )

    def last_numbers(self) -> dict[str, float]:
        """What the last line of a finished training's metrics says; nothing where they were deleted."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        last: dict[str, float] = json.loads(lines[-1]) if lines else {}
        return {name: value for name, value in last.items() if name != "step"}

    def make_latest(self) -> None:
        """Makes this the run that its name means."""
        write_json(self.root / "latest.json", {"id": self.id})


def latest(root: Path) -> Run | None:
    """The newest run below `runs/<name>`; `None` where there is none yet.

    Raises:
        StoreError: the pointer is damaged.
    """
    pointer = root / "latest.json"
    if not pointer.exists():
        return None
    return Run(root, str(read_json(pointer, fix="delete it and run `eridiff train` again")["id"]))

"""What an evaluation found, on disk: losses by subject and scores by image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eridiff.evaluation.holdout import HoldoutGrid, Losses, from_json, to_json
from eridiff.store.files import write_json


@dataclass(frozen=True)
class LossFile:
    """`validation.json`: losses of a grid by subject. A file of another grid counts as none."""

    path: Path
    grid_digest: str

    def read(self) -> dict[str, Losses]:
        """Losses of those subjects that they were taken of."""
        found = _read(self.path)
        if found.get("digest") != self.grid_digest:
            return {}
        return {key: from_json(entry) for key, entry in found["subjects"].items()}

    def write(self, grid: HoldoutGrid, losses: Mapping[str, Losses], labels: Mapping[str, str]) -> None:
        """Keeps the losses of all subjects taken so far.

        Args:
            grid: their points.
            losses: by subject.
            labels: what people call each subject.
        """
        subjects = {key: {"label": labels[key], **to_json(taken)} for key, taken in losses.items()}
        points = {
            "images": [sample.sample_id for sample in grid.samples],
            "times": grid.times,
            "seed": grid.seed,
        }
        write_json(self.path, {"digest": self.grid_digest, "grid": points, "subjects": subjects})


@dataclass(frozen=True)
class ScoreFile:
    """`scores.json`: a metric's number for each image, by the image's key."""

    path: Path
    metric: str

    def read(self) -> dict[str, float]:
        """Scores of those images that were scored by this metric."""
        return dict(_read(self.path).get(self.metric, {}))

    def write(self, scores: Mapping[str, float]) -> None:
        """Keeps this metric's scores; those of other metrics stay."""
        write_json(self.path, {**_read(self.path), self.metric: dict(scores)})


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:  # results can be taken again: a damaged file is worth as much as none
        return {}

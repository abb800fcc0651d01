from __future__ import annotations

from pathlib import Path

import pytest

from eridiff.evaluation.holdout import Losses, holdout_grid
from eridiff.evaluation.results import LossFile, ScoreFile
from tests.evaluation.samples import make_sample

GRID = holdout_grid([make_sample(1)], max_images=1, num_times=2, seed=1)
LOSSES = {"base": Losses(((1.0, 2.0),)), "d" * 64: Losses(((0.5, 1.5),))}
LABELS = {"base": "base", "d" * 64: "step 250"}


def test_losses_are_read_back(tmp_path: Path) -> None:
    file = LossFile(tmp_path / "validation.json", "g")
    assert file.read() == {}
    file.write(GRID, LOSSES, LABELS)
    assert file.read() == LOSSES


def test_losses_of_another_grid_count_as_none(tmp_path: Path) -> None:
    LossFile(tmp_path / "validation.json", "g").write(GRID, LOSSES, LABELS)
    assert LossFile(tmp_path / "validation.json", "h").read() == {}


@pytest.mark.parametrize("content", [b"", b"{", b'{"digest": "g"'])
def test_a_damaged_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "validation.json").write_bytes(content)
    assert LossFile(tmp_path / "validation.json", "g").read() == {}


def test_scores_of_several_metrics_share_a_file(tmp_path: Path) -> None:
    first, second = (ScoreFile(tmp_path / "scores.json", name) for name in ("a:f", "b:g"))
    first.write({"x": 0.5})
    second.write({"x": 0.25})
    assert first.read() == {"x": 0.5}
    assert second.read() == {"x": 0.25}

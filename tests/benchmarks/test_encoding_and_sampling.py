"""The benchmarks of encoders and of sampling on a CPU, at tiny widths: that they run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import encoders, precompute, random_bases, rows, sample
from benchmarks.busy import Busy, covered
from benchmarks.cases import SINGLES
from eridiff.demo.sizes import TINY

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the benchmarks themselves run")


def settings(folder: Path) -> encoders.Settings:
    return encoders.Settings(
        size=TINY,
        captions=7,
        images=7,
        files=9,
        side_px=64,
        text_batch=2,
        image_batch=2,
        folder=folder,
        compile=False,
    )


def test_time_that_kernels_share_counts_once() -> None:
    assert covered([]) == 0
    assert covered([(5, 7), (0, 2), (1, 3), (6, 6.5)]) == 5


def test_without_a_gpu_nothing_is_known_about_it() -> None:
    clock = Busy()
    assert not clock.recording
    clock.start()
    assert clock.recording
    seconds, busy = clock.stop()
    assert seconds >= 0
    assert busy is None


def test_two_batches_warm_up_before_the_clock_starts() -> None:
    with pytest.raises(ValueError, match="three batches"):
        encoders.timed(iter([4, 4]))
    _, rate = encoders.timed(iter([4, 4, 4, 1]))
    assert rate > 0


def test_rows_are_printed_as_they_come_and_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    found = [{"what": "a", "loop": "b", "per_s": 2.5}, {"what": "a", "loop": "c", "failed": "ValueError: no"}]
    rows.shown(iter(found), ("what", "loop", "per_s"), as_table=True)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines[:2]] == [row | {"card": "cpu"} for row in found]
    assert any("2.5" in line for line in lines[2:])
    assert any("ValueError: no" in line for line in lines[2:])


@pytest.mark.slow
def test_every_case_gives_its_rows(tmp_path: Path) -> None:
    found = list(precompute.measured(precompute.CASES, settings(tmp_path)))
    assert not [row for row in found if "failed" in row]
    assert all(row["per_s"] > 0 for row in found)
    stages = [row for row in found if row["what"].startswith("stage")]
    assert [row["loop"] for row in stages] == ["plain", "eridiff, fp32", "eridiff, fp16"] * 2
    errors = {row["loop"]: row["error"] for row in found if "error" in row}
    assert errors["float32"] < 1e-4 < errors["float16"] < errors["bfloat16"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("recipe", random_bases.BASES)
def test_sampling_gives_a_row_a_way(monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    family, _ = random_bases.BASES[recipe]
    monkeypatch.setitem(random_bases.BASES, recipe, (family, TINY))
    case = sample.tiny_case(SINGLES[recipe])
    found = list(sample.measured(case, sample.Plan(steps=2, pictures=4, batch_size=2, compile=False)))
    assert [row["loop"] for row in found] == ["one by one", "batched"]
    assert all(row["images_per_s"] > 0 for row in found)

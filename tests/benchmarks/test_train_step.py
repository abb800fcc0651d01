"""The benchmarks of the training step on a CPU, at tiny widths: that they run, not what they measure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import random_bases, train_step
from benchmarks.cases import CASES, SINGLES, Case
from eridiff.demo.sizes import TINY

WIDTHS = {
    "sdxl": (TINY.clip_l.width + TINY.clip_g.width, TINY.clip_g.projection),
    "sd35": (TINY.t5.width, TINY.clip_l.projection + TINY.clip_g.projection),
    "flux": (TINY.t5.width, TINY.clip_l.width),
}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the benchmark itself runs")
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_case_gives_three_rows_and_right_gradients(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: Case
) -> None:
    family, _ = random_bases.BASES[case.recipe]
    monkeypatch.setitem(random_bases.BASES, case.recipe, (family, TINY))
    width, pooled = WIDTHS[family]
    small = replace(case, text=(20, width), pooled=pooled, side_px=128)
    settings = train_step.Settings(1, "auto", compile=False, profiles=tmp_path)
    rows = list(train_step.measure(small, settings))
    assert [row["loop"] for row in rows] == ["eager, checkpointed", "eager", "eridiff"]
    assert not any("failed" in row for row in rows)
    assert rows[-1]["gradient_error"] < 0.1
    assert (tmp_path / f"{case.name.replace(':', '-')}.txt").read_text()


def test_a_loop_that_fails_is_a_row_and_the_next_one_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random_bases.BASES, "flux-dev", ("flux", TINY))
    width, pooled = WIDTHS["flux"]
    small = replace(SINGLES["flux-dev"], text=(20, width), pooled=pooled, side_px=64)

    def broken(*args: object, checkpointed: bool) -> train_step.Loop:
        raise RuntimeError("broken")

    monkeypatch.setattr(train_step, "eager_loop", broken)
    rows = list(train_step.measure(small, train_step.Settings(1, "auto", compile=False, profiles=None)))
    assert [row.get("failed") for row in rows] == ["RuntimeError: broken"] * 2 + [None]

"""The benchmark of all stages on a CPU, at tiny widths: that it runs, not what it measures."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks import full_size, random_bases
from eridiff.demo.sizes import TINY
from stages import pipeline


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the benchmark itself runs")
def test_every_stage_gives_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random_bases.BASES, "sdxl", ("sdxl", TINY))
    load = pipeline.load_recipe

    def small(path: Path, overrides: dict[str, object]) -> object:
        tiny = {
            "datasets.0.resolution": 128,
            "sample.width": 64,
            "sample.height": 64,
            "sample.sample_steps": 2,
        }
        return load(path, {**overrides, **tiny})

    monkeypatch.setattr(pipeline, "load_recipe", small)
    options = argparse.Namespace(recipe="sdxl", original=False, folder=tmp_path, images=4, steps=2)
    found = list(full_size.rows(options))
    assert [row["stage"] for row in found] == ["write base", "load denoiser", *pipeline.NAMES]
    assert list(tmp_path.rglob("*.html"))

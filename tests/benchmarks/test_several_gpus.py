"""The benchmark of several GPUs in one process on a CPU, at tiny widths: that it runs."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
import torch

from benchmarks import random_bases, several_gpus
from eridiff.demo.sizes import TINY
from eridiff.training.distributed import Processes
from tests.benchmarks.test_train_step import WIDTHS


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the benchmark itself runs")
def test_each_way_to_keep_the_base_gives_a_row_and_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    family, _ = random_bases.BASES["flux-dev"]
    monkeypatch.setitem(random_bases.BASES, "flux-dev", (family, TINY))
    width, pooled = WIDTHS[family]
    small = replace(several_gpus.SINGLES["flux-dev"], text=(20, width), pooled=pooled, side_px=64)
    monkeypatch.setitem(several_gpus.SINGLES, "flux-dev", small)
    options = argparse.Namespace(recipe="flux-dev", base=None, compile=False, steps=1)
    found = list(several_gpus.rows(options, Processes(0, 1, torch.device("cpu"))))
    assert [row["base"] for row in found] == ["whole", "whole", "sharded", "offloaded"]
    assert all(row["ms"] > 0 for row in found)
    assert [row["gradient_error"] for row in found[1:]] == [pytest.approx(0, abs=0.02)] * 3

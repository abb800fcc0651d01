"""The benchmark of memory on a CPU, at tiny widths: that it runs, not what it measures."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
import torch

from benchmarks import memory, random_bases
from eridiff.demo.sizes import TINY
from eridiff.families.frozen.linear import quantization_of
from tests.benchmarks.test_train_step import WIDTHS


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"quantize": None, "offload": None, "compile": False, **given})


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the benchmark itself runs")
@pytest.mark.parametrize("recipe", random_bases.BASES)
def test_each_recipe_gives_a_row(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, _ = random_bases.BASES[recipe]
    monkeypatch.setitem(random_bases.BASES, recipe, (family, TINY))
    width, pooled = WIDTHS[family]
    small = replace(memory.SINGLES[recipe], text=(20, width), pooled=pooled, side_px=64)
    monkeypatch.setitem(memory.SINGLES, recipe, small)
    trial = memory.trial_of(recipe, "8gb", options(quantize="int8", offload=1.0))
    trial = replace(trial, cap_gb=None, train=trial.train.model_copy(update={"optimizer": "adamw"}))
    assert quantization_of(memory.kept_denoiser(trial.recipe, trial.keep)) == "int8"
    found = memory.measured(trial, steps=1)
    assert found["ms"] > 0
    assert found["host_gb"] > 0


def test_the_command_line_counts_before_the_profile() -> None:
    plain = memory.trial_of("flux-dev", "12gb", options())
    assert (plain.quantize, plain.train.offload) == ("int8", 0.5)
    assert plain.cap_gb == pytest.approx(12 * 1.073741824 - 0.6, abs=0.01)
    chosen = memory.trial_of("flux-dev", "12gb", options(quantize="nf4", offload=0.0))
    assert (chosen.quantize, chosen.train.offload) == ("nf4", 0.0)

from __future__ import annotations

import pytest
import torch
from torch import nn

from eridiff.training.ema import MovingAverage


def test_the_average_follows_its_formula() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    average = MovingAverage({"w": parameter}, decay=0.75)
    wanted = 1.0
    for value in (2.0, 3.0, -1.0):
        parameter.data.fill_(value)
        average.update()
        wanted = 0.75 * wanted + 0.25 * value
        assert average.averages["w"].item() == wanted


def test_kept_averages_are_taken_up_and_a_missing_one_is_not_ignored() -> None:
    average = MovingAverage({"w": nn.Parameter(torch.zeros(2))}, decay=0.9)
    average.load({"w": torch.tensor([3.0, 4.0])})
    assert average.averages["w"].tolist() == [3.0, 4.0]
    with pytest.raises(KeyError):
        average.load({})

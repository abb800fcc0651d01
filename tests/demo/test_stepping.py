from __future__ import annotations

import pytest
import torch
from torch import nn

from eridiff.demo.stepping import TrainingStep, cosine


def test_steps_lower_the_loss_and_the_average_follows() -> None:
    model = nn.Linear(3, 1)
    nn.init.ones_(model.weight)
    inputs = torch.eye(3)
    step = TrainingStep(model, lambda: model(inputs).square().mean(), average=0.5, capture=False)
    step.reset()
    first = float(step(0.1))
    for _ in range(60):
        last = float(step(0.1))
    assert last < 0.1 * first
    weights = model.weight.detach().clone()
    step.adopt_average()
    assert torch.allclose(model.weight, weights, atol=0.1)
    assert not torch.equal(model.weight, weights)


def test_cosine_rises_then_falls_to_zero() -> None:
    assert cosine(0.01, 1.0) == pytest.approx(0.5)
    assert cosine(0.02, 1.0) == pytest.approx(1.0)
    assert cosine(1.0, 1.0) == pytest.approx(0.0)
    assert cosine(2.0, 1.0) == pytest.approx(0.0)

from __future__ import annotations

import pytest
import torch
from torch import nn

from eridiff.training.flat import ELEMENTWISE, flattened
from eridiff.training.gradients import GradientBuffer


def a_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def backward(model: nn.Module, step: int) -> None:
    model(torch.linspace(-1, 1, 10).view(2, 5) + step).square().sum().backward()


@pytest.mark.parametrize("kind", sorted(ELEMENTWISE, key=lambda kind: kind.__name__))
def test_one_flat_update_is_that_of_each_parameter(kind: type[torch.optim.Optimizer]) -> None:
    apart, together = a_model(), a_model()
    buffer = GradientBuffer(dict(together.named_parameters()), num_extra=1)
    flat = flattened(together.parameters(), buffer.gradients)
    wanted, found = kind(apart.parameters(), lr=0.01), kind([flat], lr=0.01)
    for step in range(3):
        wanted.zero_grad()
        buffer.zero_()
        backward(apart, step)
        backward(together, step)
        wanted.step()
        found.step()
    for a, b in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_parameters_stay_themselves_and_share_the_memory() -> None:
    model = a_model()
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    buffer = GradientBuffer(dict(model.named_parameters()), num_extra=0)
    flat = flattened(model.parameters(), buffer.gradients)
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])
    with torch.no_grad():
        flat.fill_(2.0)
    assert all((parameter == 2).all() for parameter in model.parameters())

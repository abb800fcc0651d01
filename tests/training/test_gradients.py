from __future__ import annotations

import pytest
import torch
from torch import nn

from eridiff.training.gradients import GradientBuffer


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def backward(model: nn.Module) -> None:
    model(torch.ones(5, 3)).square().sum().backward()


def test_backward_passes_add_up_in_the_buffer(model: nn.Module) -> None:
    backward(model)
    wanted = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    buffer = GradientBuffer(dict(model.named_parameters()), num_extra=2)
    backward(model)
    backward(model)
    assert torch.equal(buffer.gradients, 2 * wanted)
    assert torch.equal(buffer.extra, torch.zeros(2))
    buffer.zero_()
    assert not buffer.flat.any()
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_clipping_is_torchs_own(model: nn.Module) -> None:
    backward(model)
    wanted_norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    wanted = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    buffer = GradientBuffer(dict(model.named_parameters()), num_extra=0)
    backward(model)
    norm = buffer.clip_(0.5)
    torch.testing.assert_close(norm, wanted_norm)
    torch.testing.assert_close(buffer.gradients, wanted)


def test_no_limit_no_change(model: nn.Module) -> None:
    buffer = GradientBuffer(dict(model.named_parameters()), num_extra=0)
    backward(model)
    before = buffer.gradients.clone()
    buffer.clip_(0.0)
    assert torch.equal(buffer.gradients, before)

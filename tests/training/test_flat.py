from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from eridiff.training.flat import FlatParameters
from eridiff.training.optimizers import is_elementwise, optimizer_class


def a_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def flat_of(model: nn.Module, num_extra: int = 0) -> FlatParameters:
    return FlatParameters(dict(model.named_parameters()), num_extra)


def backward(model: nn.Module, step: int = 0) -> None:
    model(torch.linspace(-1, 1, 10).view(2, 5) + step).square().sum().backward()


def test_backward_passes_add_up() -> None:
    model = a_model()
    backward(model)
    wanted = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    flat = flat_of(model, num_extra=2)
    backward(model)
    backward(model)
    assert torch.equal(flat.gradients, 2 * wanted)
    assert torch.equal(flat.extra, torch.zeros(2))
    flat.zero_()
    assert not flat.summed.any()
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_clipping_is_torchs_own() -> None:
    model = a_model()
    backward(model)
    wanted_norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    wanted = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    flat = flat_of(model)
    backward(model)
    norm = flat.clip_(0.5)
    torch.testing.assert_close(norm, wanted_norm)
    torch.testing.assert_close(flat.gradients, wanted)


def test_no_limit_no_change() -> None:
    model = a_model()
    flat = flat_of(model)
    backward(model)
    before = flat.gradients.clone()
    flat.clip_(0.0)
    assert torch.equal(flat.gradients, before)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_one_flat_update_is_that_of_each_parameter(name: str) -> None:
    kind: Any = optimizer_class(name)
    assert is_elementwise(kind)
    apart, together = a_model(), a_model()
    flat = flat_of(together, num_extra=1)
    one = flat.as_one([name for name, _ in together.named_parameters()])
    wanted, found = kind(apart.parameters(), lr=0.01), kind([one], lr=0.01)
    for step in range(3):
        wanted.zero_grad()
        flat.zero_()
        backward(apart, step)
        backward(together, step)
        wanted.step()
        found.step()
    for a, b in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw8bit", "bitsandbytes.optim.Adam8bit"])
def test_in_8_bits_too_where_parameters_are_of_whole_blocks(name: str) -> None:
    pytest.importorskip("bitsandbytes")
    kind: Any = optimizer_class(name)
    assert is_elementwise(kind)
    shapes = [(16, 640), (640, 16), (48, 256)]
    apart = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    flat = FlatParameters({str(n): nn.Parameter(p.detach().clone()) for n, p in enumerate(apart)}, 0)
    one = flat.as_one(["0", "1", "2"])
    wanted, found = kind(apart, lr=0.01), kind([one], lr=0.01)
    for _ in range(3):
        for parameter in apart:
            parameter.grad = torch.randn_like(parameter)
        flat.gradients.copy_(torch.cat([parameter.grad.flatten() for parameter in apart]))
        wanted.step()
        found.step()
    assert torch.equal(one.detach(), torch.cat([parameter.detach().flatten() for parameter in apart]))


def test_what_looks_at_whole_parameters_gets_them() -> None:
    assert not is_elementwise(torch.optim.Adafactor)


def test_parameters_stay_themselves_and_share_the_memory() -> None:
    model = a_model()
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    flat = flat_of(model)
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])
    flat.values.fill_(2.0)
    assert all((parameter == 2).all() for parameter in model.parameters())


def test_a_stretch_of_parameters_is_one() -> None:
    model = a_model()
    flat = flat_of(model)
    backward(model)
    one = flat.as_one(["0.bias", "2.weight"])
    assert one.grad is not None
    assert torch.equal(one, torch.cat([model[0].bias, model[2].weight.flatten()]))
    assert torch.equal(one.grad, torch.cat([model[0].bias.grad, model[2].weight.grad.flatten()]))
    with pytest.raises(ValueError, match="follow"):
        flat.as_one(["0.weight", "2.weight"])

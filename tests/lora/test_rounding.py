from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from eridiff.lora.forward import compute_in_input_precision, join_projections, lora_forwards
from eridiff.lora.inject import lora_state
from eridiff.lora.rounding import Rounding
from eridiff.training.flat import FlatParameters


class Attention(nn.Module):
    """Three projections of one input, and a layer after them."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 4)
        self.to_out = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        together: Any = getattr(self, "together", {}).get(("to_q", "to_k", "to_v"))
        parts = together(x) if together else (self.to_q(x), self.to_k(x), self.to_v(x))
        return self.to_out(torch.cat(parts, dim=-1).tanh())


def a_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(Attention(), Attention()).bfloat16().requires_grad_(False)
        inject_adapter_in_model(
            LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out"]), model
        )
        for parameter in lora_state(model).values():
            parameter.data = torch.randn(parameter.shape)
    compute_in_input_precision(model)
    return model


def backward(model: nn.Module) -> torch.Tensor:
    output = model(torch.linspace(-1, 1, 48).view(2, 3, 8).bfloat16())
    output.float().square().mean().backward()
    return output


def ordered(model: nn.Module, *, reverse: bool) -> dict[str, nn.Parameter]:
    """The parameters, `down`s first, in the model's order or the other way round."""
    state = lora_state(model)
    return {
        name: state[name]
        for name in sorted(state, key=lambda name: ("lora_B" in name) != reverse)[:: -1 if reverse else 1]
    }


@pytest.mark.parametrize("reverse", [False, True])
def test_rounding_ahead_changes_neither_output_nor_gradients(reverse: bool) -> None:
    model = a_model()
    join_projections(model)
    assert len(lora_forwards(model)) == 4
    flat = FlatParameters(ordered(model, reverse=reverse), num_extra=0)
    wanted, gradients = backward(model), flat.gradients.clone()
    flat.zero_()
    with Rounding(lora_forwards(model), flat.values, flat.gradients, torch.bfloat16).ahead():
        found = backward(model)
    assert torch.equal(found, wanted)
    torch.testing.assert_close(flat.gradients, gradients, rtol=1e-6, atol=1e-8)


def test_layers_whose_factors_lie_elsewhere_round_them_for_themselves() -> None:
    model = a_model()
    own = {name: p for name, p in lora_state(model).items() if not name.startswith("1.")}
    flat = FlatParameters(own, num_extra=0)
    rounding = Rounding(lora_forwards(model), flat.values, flat.gradients, torch.bfloat16)
    with rounding.ahead():
        backward(model)
    assert flat.gradients.any()
    others = [p.grad for name, p in lora_state(model).items() if name.startswith("1.")]
    assert all(gradient is not None and gradient.any() for gradient in others)


def test_after_a_pass_that_broke_off_layers_round_for_themselves_again() -> None:
    model = a_model()
    flat = FlatParameters(lora_state(model), num_extra=0)
    rounding = Rounding(lora_forwards(model), flat.values, flat.gradients, torch.bfloat16)
    with pytest.raises(RuntimeError, match="out of memory"), rounding.ahead():
        raise RuntimeError("out of memory")
    assert all(forward.rounded is None for forward in lora_forwards(model))
    flat.values.mul_(2)
    before = model(torch.ones(1, 8).bfloat16())
    flat.values.zero_()
    assert not torch.equal(model(torch.ones(1, 8).bfloat16()), before)

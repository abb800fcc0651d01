from __future__ import annotations

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from eridiff.lora.forward import compute_in_input_precision
from eridiff.lora.inject import lora_state


def a_model() -> nn.Module:
    """A linear layer and a convolution with LoRA of scale 1/2, float32, and a convolution without."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1), nn.Linear(8, 5))
        model.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=4, lora_alpha=2, target_modules=["0", "2"]), model)
        for parameter in lora_state(model).values():
            nn.init.normal_(parameter)
    return model


def output_and_gradients(model: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    output = model(torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8).to(dtype))
    return output, *torch.autograd.grad(output.float().square().mean(), list(lora_state(model).values()))


def test_the_same_as_pefts_own_layers() -> None:
    model = a_model()
    wanted = output_and_gradients(model)
    compute_in_input_precision(model)
    for a, b in zip(output_and_gradients(model), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.detach().abs().max()))


def test_half_precision_is_computed_in_half_with_float32_gradients() -> None:
    model = a_model()
    wanted = output_and_gradients(model)
    parameters = lora_state(model)
    model.bfloat16()
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
    compute_in_input_precision(model)
    output, *gradients = output_and_gradients(model, torch.bfloat16)
    assert output.dtype == torch.bfloat16
    for found, exact in zip(gradients, wanted[1:], strict=True):
        assert found.dtype == torch.float32
        assert (found - exact).norm() < 0.05 * exact.norm()


def test_switched_off_it_is_the_base() -> None:
    model = a_model()
    compute_in_input_precision(model)
    for layer in (model[0], model[2]):
        layer.enable_adapters(False)
    x = torch.ones(1, 3, 8, 8)
    base = model[2].base_layer(model[1](model[0].base_layer(x)))
    assert torch.equal(model(x), base)

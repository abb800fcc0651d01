"""Denoisers loaded with their blocks' linear layers in few bits, and with blocks left in system memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from eridiff.families.frozen.keep import Keep, Quantization, block_of, blocks_of, is_quantised, weight_bytes
from eridiff.families.frozen.linear import FORMS, FrozenLinear, quantization_of
from tests.families.samples import CAPTIONS, CPU_FP32, conditioning


def load(tiny: Any, keep: Keep) -> Any:
    return tiny.family.load_denoiser(tiny.base, **CPU_FP32, keep=keep)


def test_the_pattern_names_exactly_the_blocks_that_repeat(tiny: Any) -> None:
    modules = dict(tiny.denoiser.named_modules())
    wanted = {name for name, module in modules.items() if type(module).__name__ in tiny.family.blocks}
    assert set(blocks_of(modules, tiny.family.checkpoint.blocks)) == wanted


@pytest.mark.parametrize("form", FORMS)
def test_linear_layers_of_blocks_and_nothing_else_are_in_few_bits(tiny: Any, form: Quantization) -> None:
    plain, found = tiny.denoiser, load(tiny, Keep(form))
    blocks = tiny.family.checkpoint.blocks
    assert (quantization_of(found), quantization_of(plain)) == (form, "none")
    assert list(found.state_dict()) == list(plain.state_dict()), "names stay"
    for name, weight in plain.state_dict().items():
        layer = found.get_submodule(name.rpartition(".")[0])
        if is_quantised(name, tuple(weight.shape), blocks, form):
            assert isinstance(layer, FrozenLinear)
            assert layer.weight.shape == weight.shape
            assert float((layer.dense() - weight).norm() / weight.norm()) < 0.13
        else:
            assert torch.equal(found.state_dict()[name], weight)


@pytest.mark.parametrize("form", FORMS)
def test_bytes_are_those_that_a_plan_counts(tiny: Any, form: Quantization) -> None:
    shapes = {name: tuple(weight.shape) for name, weight in tiny.denoiser.named_parameters()}
    blocks = tiny.family.checkpoint.blocks
    found: dict[str | None, int] = {}
    loaded: nn.Module = load(tiny, Keep(form))
    packed = [(name, value) for name, value in loaded.named_buffers() if name.endswith((".codes", ".scales"))]
    for name, weight in [*loaded.named_parameters(), *packed]:
        block, stands_in = block_of(name, blocks), not all(weight.stride())
        found[block] = found.get(block, 0) + (0 if stands_in else weight.nbytes)
    wanted = weight_bytes(shapes, blocks, Keep(form), item_bytes=4)
    assert {block: size for block, size in found.items() if size} == wanted


def test_a_denoiser_in_few_bits_predicts_nearly_the_same(tiny: Any) -> None:
    with torch.no_grad():
        cond = conditioning(tiny.family.encode_prompts(tiny.encoders, CAPTIONS))
        shape = (len(CAPTIONS), tiny.family.latent.channels, 8, 8)
        noisy = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        t = torch.full((len(CAPTIONS),), 0.5)
        wanted = tiny.family.predict(tiny.denoiser, noisy, t, cond)
        errors = {
            form: float((tiny.family.predict(load(tiny, Keep(form)), noisy, t, cond) - wanted).norm())
            / float(wanted.norm())
            for form in FORMS
        }
    assert 0 < errors["int8"] < errors["nf4"] < 0.5
    assert errors["int8"] < 0.03
    assert 0 < errors["fp8"] < 0.2


def test_blocks_that_stay_away_are_loaded_all_the_same(tiny: Any) -> None:
    found = load(tiny, Keep("none", 0.5))
    for name, weight in tiny.denoiser.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight)


@pytest.mark.gpu
def test_blocks_that_stay_away_lie_in_system_memory(tiny: Any) -> None:
    where = {"device": torch.device("cuda"), "dtype": torch.bfloat16}
    found = tiny.family.load_denoiser(tiny.base, **where, keep=Keep("int8", 1.0))
    blocks = tiny.family.checkpoint.blocks
    for name, tensor in [*found.named_parameters(), *found.named_buffers()]:
        if all(tensor.stride()):  # no stand-in for a weight
            assert tensor.device.type == ("cpu" if block_of(name, blocks) else "cuda")

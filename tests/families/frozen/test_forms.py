"""Products with weights in few bits: what they compute, and the gradients that they pass on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eridiff.errors import ModelError
from eridiff.families.frozen import fp8
from eridiff.families.frozen.keep import Quantization, kept_bytes
from eridiff.families.frozen.linear import FORMS, FrozenLinear

SIDES = (96, 128)
ROUNDING: dict[Quantization, float] = {"int8": 0.01, "nf4": 0.12, "fp8": 0.04}
"""Largest |W - W'| / |W| of normal weights."""
OF_INPUTS: dict[Quantization, float] = {"int8": 1e-5, "nf4": 1e-5, "fp8": 0.05}
"""How far a product may be from that of the dense weight: fp8 rounds its inputs, too."""
CUDA = torch.device("cuda")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().float(), wanted.detach().float()
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_is_kept_in_the_bytes_that_were_promised_with_little_error(form: Quantization) -> None:
    weight = normal(*SIDES) * torch.logspace(-3, 1, SIDES[0])[:, None]  # rows of very different sizes
    codes, scales = FORMS[form].pack(weight)
    assert codes.nbytes + scales.nbytes == kept_bytes(SIDES, form)
    dense = FORMS[form].dense(codes, scales, SIDES)
    assert dense.dtype == torch.float32
    assert max(relative(*rows) for rows in zip(dense, weight, strict=True)) < 1.2 * ROUNDING[form]


@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_zeros_stays_zero(form: Quantization) -> None:
    weight = normal(*SIDES)
    weight[3] = 0
    assert not FORMS[form].dense(*FORMS[form].pack(weight), SIDES)[3].any()


@pytest.mark.parametrize("rows", [2, 64])
@pytest.mark.parametrize("form", FORMS)
def test_a_product_and_its_gradient_are_those_of_the_dense_weight(form: Quantization, rows: int) -> None:
    codes, scales = FORMS[form].pack(normal(*SIDES))
    dense = FORMS[form].dense(codes, scales, SIDES)
    x = normal(2, rows, SIDES[1], seed=1).requires_grad_()
    towards = normal(2, rows, SIDES[0], seed=2)
    found = FORMS[form].product(x, codes, scales, SIDES)
    (gradient,) = torch.autograd.grad(found, x, towards)
    assert found.shape == towards.shape
    assert found.dtype == gradient.dtype == x.dtype
    assert relative(found, x @ dense.T) < OF_INPUTS[form]
    assert relative(gradient, towards @ dense) < OF_INPUTS[form]


def test_few_rows_are_multiplied_by_the_dense_weight_in_fp8() -> None:
    codes, scales = fp8.pack(normal(*SIDES))
    x = normal(1, SIDES[1], seed=1)
    assert torch.equal(fp8.product(x, codes, scales, SIDES), x @ fp8.dense(codes, scales, SIDES).T)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_dense_is_kept_for_the_backward_pass(form: Quantization) -> None:
    layer = FrozenLinear(torch.nn.Linear(SIDES[1], SIDES[0]), form)
    layer.bias = torch.nn.Parameter(normal(SIDES[0]), requires_grad=False)
    layer.take(normal(*SIDES), torch.device("cpu"))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = normal(32, SIDES[1]).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    assert {tensor.data_ptr() for tensor in kept} <= {layer.codes.data_ptr(), layer.scales.data_ptr()}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does
@pytest.mark.parametrize("form", FORMS)
def test_a_layer_compiles_whole(form: Quantization) -> None:
    layer = FrozenLinear(torch.nn.Linear(SIDES[1], SIDES[0], bias=False), form)
    layer.take(normal(*SIDES), torch.device("cpu"))
    x = normal(32, SIDES[1]).bfloat16().requires_grad_()
    wanted = layer(x)
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), x)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found = compiled(x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert relative(found, wanted) < 1e-2
    assert relative(gradient, wanted_gradient) < 1e-2
    torch._dynamo.reset()


@pytest.mark.parametrize("capability", [(8, 0), (8, 6)])
def test_a_card_without_fp8_is_refused(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(ModelError, match=r"no fp8 products(?s:.*)8\.9"):
        fp8.refuse_without_hardware(CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    fp8.refuse_without_hardware(CUDA)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("form", FORMS)
def test_a_compiled_layer_on_a_gpu_keeps_the_shape_of_its_input(form: Quantization) -> None:
    """Inductor has a product of its own for codes of int8, which loses it."""
    layer = FrozenLinear(torch.nn.Linear(SIDES[1], SIDES[0]), form)
    layer.bias = torch.nn.Parameter(normal(SIDES[0]).to(CUDA, torch.bfloat16), requires_grad=False)
    layer.take(normal(*SIDES).to(CUDA), CUDA)
    x = normal(2 * 32, SIDES[1]).view(2, 32, SIDES[1]).to(CUDA, torch.bfloat16).requires_grad_()
    towards = normal(2 * 32, SIDES[0], seed=2).view(2, 32, SIDES[0]).to(CUDA, torch.bfloat16)
    wanted = layer(x)
    (wanted_gradient,) = torch.autograd.grad(wanted, x, towards)
    found = torch.compile(layer, fullgraph=True)(x)
    (gradient,) = torch.autograd.grad(found, x, towards)
    assert relative(found, wanted) < 1e-2
    assert relative(gradient, wanted_gradient) < 1e-2
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 77, 4608])
@pytest.mark.parametrize("form", FORMS)
def test_on_a_gpu_as_on_a_cpu(form: Quantization, rows: int) -> None:
    sides = (3072, 1024)
    codes, scales = FORMS[form].pack(normal(*sides).to(CUDA))
    dense = FORMS[form].dense(codes, scales, sides)
    assert relative(dense.cpu(), normal(*sides)) < ROUNDING[form]
    x = normal(rows, sides[1], seed=1).to(CUDA, torch.bfloat16).requires_grad_()
    towards = normal(rows, sides[0], seed=2).to(CUDA, torch.bfloat16)
    found = FORMS[form].product(x, codes, scales, sides)
    (gradient,) = torch.autograd.grad(found, x, towards)
    assert relative(found, x.float() @ dense.T) < 0.05
    assert relative(gradient, towards.float() @ dense) < 0.05

from __future__ import annotations

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.nn.functional import gelu

from eridiff.families.feed_forward import geglu
from eridiff.families.feed_forward.geglu import gated, use_one_pass
from eridiff.training.compiling import compile_blocks, num_compiled

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def exact_gradient(wide: Tensor, gradient: Tensor) -> Tensor:
    exact = wide.detach().double().requires_grad_()
    hidden, gate = exact.chunk(2, dim=-1)
    return torch.autograd.grad(hidden * gelu(gate), exact, gradient.double())[0].to(wide.dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "width"), [(130, 1024), (7, 200), (3, 2560)])
def test_the_gradient_is_autograds(dtype: torch.dtype, num_rows: int, width: int) -> None:
    torch.manual_seed(0)
    wide = 3 * torch.randn(2, num_rows, 2 * width, device="cuda", dtype=dtype)
    gradient = torch.randn(2, width, num_rows, device="cuda", dtype=dtype).transpose(1, 2)
    wide.requires_grad_()
    found = torch.autograd.grad(gated(wide), wide, gradient)[0]
    torch.testing.assert_close(found, exact_gradient(wide, gradient))


@pytest.mark.gpu
def test_layers_compute_what_diffusers_do_compiled_and_not() -> None:
    torch.manual_seed(0)
    layer = GEGLU(64, 128).to("cuda")
    x = torch.randn(2, 5, 64, device="cuda", requires_grad=True)
    wanted = layer(x)
    of_x = torch.autograd.grad(wanted.square().sum(), x)[0]
    use_one_pass(layer, x.device)
    for run in (layer, torch.compile(layer, fullgraph=True)):
        found = run(x)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], of_x)


def test_without_kernels_layers_stay_diffusers_own() -> None:
    layer = GEGLU(4, 8)
    use_one_pass(layer, torch.device("cpu"))
    assert "forward" not in vars(layer)


def test_blocks_of_a_kind_are_still_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geglu, "has_triton", lambda device: True)
    blocks = [BasicTransformerBlock(8, 1, 8, activation_fn="geglu") for _ in range(3)]
    denoiser = nn.Sequential(*blocks)
    use_one_pass(denoiser, torch.device("cpu"))
    compile_blocks(denoiser, ["BasicTransformerBlock"], backend="eager")
    before = num_compiled()
    with torch.no_grad():
        denoiser(torch.randn(1, 4, 8))
    assert num_compiled() == before + 1

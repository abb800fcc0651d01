from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import group_norm

from eridiff.families.group_norm import by_channels, use_channel_statistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_it_is_group_norm(dtype: torch.dtype, mean: float) -> None:
    torch.manual_seed(0)
    x = (mean + torch.randn(2, 12, 5, 7) * torch.linspace(0.5, 4, 12)[:, None, None]).to(dtype)
    weight, bias = torch.randn(12).to(dtype), torch.randn(12).to(dtype)
    exact = group_norm(x.double(), 3, weight.double(), bias.double(), 1e-6).to(dtype)
    torch.testing.assert_close(by_channels(x, 3, weight, bias, 1e-6), exact)


def test_a_constant_image_gives_the_bias() -> None:
    bias = torch.randn(8)
    found = by_channels(torch.full((1, 8, 4, 4), 3.0), 2, torch.ones(8), bias, 1e-6)
    torch.testing.assert_close(found, bias[None, :, None, None].expand(1, 8, 4, 4))


def test_norms_compute_so_where_they_are_compiled_and_only_there() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))
    x = torch.randn(1, 3, 6, 6)
    wanted = model(x)
    use_channel_statistics(model)
    assert torch.equal(model(x), wanted)
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> object:
        graphs.append(graph.code)
        return graph.forward

    torch.testing.assert_close(torch.compile(model, backend=backend)(x), wanted)
    assert "group_norm" not in graphs[0]
    tokens = torch.randn(1, 8, 5)  # as attention's norms get it
    assert torch.equal(model[1](tokens), group_norm(tokens, 2, model[1].weight, model[1].bias))


def test_the_operator_tells_compilers_the_truth() -> None:
    mean, variance = torch.randn(2, 12), torch.rand(2, 12)
    torch.library.opcheck(torch.ops.eridiff.statistics_of_groups.default, (mean, variance, 3))

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from eridiff.families import vae_attention
from eridiff.families.float16_vae import shrink


def small_vae(width: int = 32) -> Any:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, width),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).eval()


@pytest.mark.parametrize("scores_bytes", [1, 3000, 2**28], ids=["a query", "some queries", "all queries"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_products_are_the_librarys_own_attention(
    monkeypatch: pytest.MonkeyPatch, scores_bytes: int, layout: torch.memory_format
) -> None:
    monkeypatch.setattr(vae_attention, "_SCORES_BYTES", scores_bytes)
    vae = small_vae()
    pixels = torch.randn(3, 3, 24, 16).to(memory_format=layout)
    with torch.no_grad():
        moments = vae.encode(pixels).latent_dist
        image = vae.decode(moments.mean).sample
        vae_attention.use_products(vae)
        again = vae.encode(pixels).latent_dist
        torch.testing.assert_close(again.parameters, moments.parameters, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(vae.decode(moments.mean).sample, image, rtol=1e-4, atol=1e-5)
    used = [module.processor for module in vae.modules() if hasattr(module, "processor")]
    assert [type(processor) for processor in used] == [vae_attention.ProductAttention] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu_the_published_width_agrees_with_the_cpu(dtype: torch.dtype) -> None:
    from eridiff.devices import tf32_products

    cuda = torch.device("cuda")
    vae = small_vae(512)
    pixels = torch.randn(2, 3, 128, 96).clamp(-1, 1)
    with torch.no_grad(), tf32_products(cuda):
        wanted = vae.encode(pixels).latent_dist.parameters
        shrink(vae.encoder)
        vae.to(cuda, dtype)
        vae_attention.use_products(vae)
        found = vae.encode(pixels.to(cuda, dtype)).latent_dist.parameters.float().cpu()
    apart = float((found - wanted).norm() / wanted.norm())
    assert apart < (3e-2 if dtype == torch.bfloat16 else 3e-3)

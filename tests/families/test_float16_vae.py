from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.families.checkpoints.base import resolve
from eridiff.families.float16_vae import shrink
from eridiff.recipe import Model


def vae_of(blocks: tuple[int, ...] = (8, 16, 16)) -> Any:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=blocks,  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * len(blocks),  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * len(blocks),  # pyright: ignore[reportArgumentType]
        norm_num_groups=4,
        layers_per_block=2,
    ).eval()


def moments(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vae.encode(pixels.to(vae.dtype)).latent_dist.parameters


def test_a_smaller_stream_gives_the_same_to_the_bit_in_float32() -> None:
    vae, pixels = vae_of(), torch.randn(2, 3, 32, 48).clamp(-1, 1)
    largest: list[float] = []

    def note(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        largest.append(float(output.abs().max()))

    vae.encoder.mid_block.register_forward_hook(note)
    wanted = moments(vae, pixels)
    shrink(vae.encoder)
    assert torch.equal(moments(vae, pixels), wanted)
    assert largest[1] == largest[0] / 32


def test_what_overflows_in_float16_no_longer_does() -> None:
    vae, pixels = vae_of(), torch.randn(1, 3, 32, 32).clamp(-1, 1)
    with torch.no_grad():  # a stream that grows as that of the published ones
        vae.encoder.conv_in.weight.mul_(1e5)
    wanted = moments(vae, pixels)
    torch.nn.Module.to(vae, torch.float16)
    assert not moments(vae, pixels).isfinite().all()
    wide = vae_of()
    with torch.no_grad():
        wide.encoder.conv_in.weight.mul_(1e5)
    shrink(wide.encoder)
    torch.nn.Module.to(wide, torch.float16)
    found = moments(wide, pixels).float()
    assert float((found - wanted).norm() / wanted.norm()) < 3e-3


@pytest.mark.parametrize("name", families.names())
def test_a_vae_in_float16_is_loaded_so_and_nearly_as_exact(name: str, tmp_path: Any) -> None:
    save_random_base(name, tmp_path)
    family = families.get(name, {})
    base = resolve(Model(family=name, base=str(tmp_path)), family)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    exact, half = (
        family.encode_images(family.load_vae(base, device=torch.device("cpu"), dtype=dtype), pixels)
        for dtype in (torch.float32, torch.float16)
    )
    assert half.mean.dtype == torch.float32
    apart = float((half.mean - exact.mean).norm() / exact.mean.norm())
    assert 0 < apart < 3e-3

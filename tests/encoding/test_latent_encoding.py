from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eridiff.encoding.latents import NOT_FINITE, LatentEncoder, encode_latents
from eridiff.encoding.wanted import LatentJob, wanted_latents
from eridiff.families.base import Moments
from eridiff.store.parts import Item
from eridiff.tensors import from_stored
from tests.encoding.world import World


def encode(
    world: World, *, batch_size: int, vae: Any = None, tile_above_px: int = 4096
) -> dict[str, Item | str]:
    encoder = LatentEncoder(world.family, vae or world.vae(), tile_above_px)
    jobs = [*wanted_latents(world.snapshot).values()]
    found: dict[str, Item | str] = {}
    for outcomes in encode_latents(encoder, world.images, jobs, batch_size=batch_size):
        assert 1 <= len(outcomes) <= batch_size
        found |= outcomes
    return found


def moments(item: Item | str) -> Moments:
    assert isinstance(item, Item)
    return Moments(*(from_stored(item.tensors[name]) for name in ("mean", "logvar")))


def test_every_image_is_encoded_as_the_vae_would_by_itself(world: World) -> None:
    found = encode(world, batch_size=2)
    jobs = wanted_latents(world.snapshot)
    assert found.keys() == jobs.keys()
    assert len(jobs) == 2 * len(world.snapshot.samples)  # each mirrored, too
    vae = world.vae()
    for key, job in jobs.items():
        sample = job.sample
        image = Image.open(
            sample.source if sample.source.startswith("/") else folder_of(world) / sample.source
        )
        image = image.resize((sample.resized_width, sample.resized_height), Image.Resampling.LANCZOS)
        right, bottom = sample.crop_left + sample.bucket_width, sample.crop_top + sample.bucket_height
        image = image.crop((sample.crop_left, sample.crop_top, right, bottom))
        if job.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 255 * 2 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            wanted = world.family.encode_images(vae, pixels)
        made = moments(found[key])
        torch.testing.assert_close(made.mean, wanted.mean[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made.logvar, wanted.logvar[0], rtol=1e-4, atol=1e-5)
        assert made.mean.dtype == torch.float32
        stride = world.family.latent.stride
        shape = (world.family.latent.channels, sample.bucket_height // stride, sample.bucket_width // stride)
        assert made.mean.shape == shape


def folder_of(world: World) -> Any:
    return world.recipe.datasets[0].folder_path


def test_large_images_go_through_the_vae_in_tiles(world: World) -> None:
    vae = world.vae()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 64, 8
    tiled = encode(world, batch_size=1, vae=vae, tile_above_px=100)
    assert not vae.use_tiling
    whole = encode(world, batch_size=1, vae=vae)
    for key, item in tiled.items():
        assert not torch.equal(moments(item).mean, moments(whole[key]).mean)
        assert moments(item).mean.shape == moments(whole[key]).mean.shape
        assert torch.isfinite(moments(item).mean).all()


class HalfBlindVae(torch.nn.Module):
    """Not finite on bright images in half precision, and on black ones always."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float16))
        self.seen: list[tuple[torch.dtype, int]] = []

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device


def half_blind_moments(vae: HalfBlindVae, pixels: torch.Tensor) -> Moments:
    vae.seen.append((vae.dtype, len(pixels)))
    mean = pixels.mean(1, keepdim=True)[:, :, ::8, ::8].clone()
    bright, black = pixels.amax((1, 2, 3)) > 0.9, pixels.amax((1, 2, 3)) < -0.9
    if vae.dtype == torch.float16:
        mean[bright, 0, 0, 0] = float("nan")
    mean[black, 0, 0, 0] = float("inf")
    return Moments(mean, torch.zeros_like(mean))


def test_what_is_not_finite_is_encoded_again_in_float32() -> None:
    vae = HalfBlindVae()
    family: Any = SimpleNamespace(encode_images=half_blind_moments)
    pixels = [np.full((16, 16, 3), value, np.uint8) for value in (128, 255, 0, 200)]
    rows = LatentEncoder(family, vae, 4096).start(pixels)()
    assert [row is not None for row in rows] == [True, True, False, True]
    assert vae.seen == [(torch.float16, 4), (torch.float32, 2)]
    assert vae.dtype == torch.float16
    bright = rows[1]
    assert bright is not None
    assert bright.mean.unique().tolist() == [1.0]


def test_what_is_never_finite_gets_a_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    family = type(world.family)
    bad = next(iter(wanted_latents(world.snapshot).values()))
    honest, calls = family.encode_images, []

    def first_is_nan(self: Any, vae: Any, pixels: torch.Tensor) -> Moments:
        made = honest(self, vae, pixels)
        if not calls:
            made.logvar[0] = float("nan")
        calls.append(pixels)
        return made

    monkeypatch.setattr(family, "encode_images", first_is_nan)
    found = encode(world, batch_size=2)
    assert found[bad.key] == NOT_FINITE
    assert sum(isinstance(item, Item) for item in found.values()) == len(found) - 1


def test_an_image_that_does_not_decode_gets_a_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    jobs = [*wanted_latents(world.snapshot).values()]
    wrong = LatentJob(replace(jobs[0].sample, width=jobs[0].sample.width + 1), False)  # not the file's size
    encoder = LatentEncoder(world.family, world.vae(), 4096)
    (outcomes,) = encode_latents(encoder, world.images, [wrong, jobs[1]], batch_size=2)
    assert "decodes to" in str(outcomes[wrong.key])
    assert isinstance(outcomes[jobs[1].key], Item)

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from eridiff.encoding.pixels import read_pixels, to_values
from eridiff.encoding.transfer import Arriving, stacked
from eridiff.encoding.wanted import wanted_latents
from eridiff.images.formats import UnusableImage
from tests.encoding.world import World

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def device_of(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(name)


@pytest.mark.parametrize("name", DEVICES)
def test_values_are_equal_to_the_bit_on_every_device(name: str) -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    values = to_values(stacked([levels, levels[::-1]], device_of(name)))
    wanted = ((levels.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)).transpose(
        2, 0, 1
    )
    assert values.dtype == torch.float32
    assert values.is_contiguous()
    assert values[0].cpu().numpy().tobytes() == wanted.tobytes()
    assert values[1].cpu().numpy().tobytes() == np.ascontiguousarray(wanted[:, ::-1]).tobytes()
    assert (values.min(), values.max()) == (-1, 1)


@pytest.mark.parametrize("name", DEVICES)
def test_what_arrives_is_what_was_sent(name: str) -> None:
    device = device_of(name)
    sent = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)).to(device)
    doubled, flags = Arriving(sent + sent, sent > 0).wait()
    assert torch.equal(doubled, 2 * sent.cpu())
    assert torch.equal(flags, sent.cpu() > 0)


def test_pixels_come_in_the_order_of_the_jobs_and_mirrored_ones_are(world: World) -> None:
    jobs = [*wanted_latents(world.snapshot).values()]
    found = dict(zip(jobs, read_pixels(world.images, jobs, ahead=1), strict=True))
    folder = world.recipe.datasets[0].folder_path
    for job, pixels in found.items():
        assert not isinstance(pixels, UnusableImage)
        sample = job.sample
        assert (pixels.shape, pixels.dtype) == ((sample.bucket_height, sample.bucket_width, 3), np.uint8)
        image = Image.open(folder / sample.source).convert("RGB")
        image = image.resize((sample.resized_width, sample.resized_height), Image.Resampling.LANCZOS)
        left, top = sample.crop_left, sample.crop_top
        image = image.crop((left, top, left + sample.bucket_width, top + sample.bucket_height))
        wanted = np.asarray(image)
        assert np.array_equal(pixels, wanted[:, ::-1] if job.mirrored else wanted)

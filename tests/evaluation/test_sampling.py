from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor, nn
from torch._dynamo.utils import counters

from eridiff.errors import StoreError
from eridiff.evaluation.pictures import LoraFile, Picture, Settings, all_pictures, batches
from eridiff.evaluation.sampling import attached, sample, sample_missing, write_png
from eridiff.training.compiling import compile_blocks
from tests.evaluation.conftest import World
from tests.evaluation.samples import PROMPTS

LORA = LoraFile("step 250", 250, Path("lora.safetensors"), "d" * 64)


def settings_of(world: World, negative: str = "") -> Settings:
    return Settings(
        base="b",
        base_name="tiny",
        text_space="t",
        family=world.family.name,
        options={},
        negative=negative,
        width_px=64,
        height_px=64,
        steps=2,
        guidance=4.0,
        dtype="fp32",
    )


def random_lora(world: World, pipeline: Any) -> Mapping[str, Tensor]:
    """A LoRA of rank 2 on the attention of the denoiser, under diffusers' names."""
    (place,) = world.family.parts.denoiser
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, module in getattr(pipeline, place).named_modules():
        wanted = any(re.fullmatch(pattern, name) for pattern in world.family.targets["attn"])
        if wanted and isinstance(module, nn.Linear):
            down = torch.randn(2, module.in_features, generator=generator)
            up = torch.randn(module.out_features, 2, generator=generator)
            tensors |= {f"{place}.{name}.lora_A.weight": down, f"{place}.{name}.lora_B.weight": up}
    assert tensors
    return tensors


def pictures_of(world: World, strength: float, lora: LoraFile | None) -> list[Picture]:
    return [Picture(PROMPTS[1], seed, strength, lora, settings_of(world)) for seed in (1, 2)]


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and ImageChops.difference(first, second).getbbox() is None


def test_strength_0_is_the_base_exactly_and_so_is_the_pipeline_afterwards(
    world: World, pipeline: Any
) -> None:
    pictures = pictures_of(world, 0.0, None)
    before = sample(world.family, pipeline, world.cached, pictures)
    with attached(pipeline, random_lora(world, pipeline)) as lora:
        full = sample(world.family, pipeline, world.cached, pictures)
        lora.set_strength(0.0)
        silenced = sample(world.family, pipeline, world.cached, pictures)
        lora.set_strength(1.0)
        again = sample(world.family, pipeline, world.cached, pictures)
    after = sample(world.family, pipeline, world.cached, pictures)
    for number in range(2):
        assert not same(before[number], full[number])
        assert same(full[number], again[number])
        assert same(before[number], silenced[number])
        assert same(before[number], after[number])


def test_images_differ_by_seed_and_by_prompt(world: World, pipeline: Any) -> None:
    pictures = all_pictures(PROMPTS[1:3], (1, 2), (0.0,), (), settings_of(world))
    images = sample(world.family, pipeline, world.cached, pictures)
    for first in range(4):
        for second in range(first):
            assert not same(images[first], images[second])


def test_a_batch_holds_the_images_that_each_would_be_alone(world: World, pipeline: Any) -> None:
    pictures = all_pictures(PROMPTS[1:3], (1, 2), (0.0,), (), settings_of(world, "blurry"))
    together = sample(world.family, pipeline, world.cached, pictures)
    for picture, image in zip(pictures, together, strict=True):
        (alone,) = sample(world.family, pipeline, world.cached, [picture])
        apart = np.asarray(image).astype(int) - np.asarray(alone).astype(int)
        assert abs(apart).max() <= 1  # in float32; a level of 255 where rounding falls the other way


@pytest.mark.slow
def test_compiled_blocks_sample_the_same_images_with_and_without_a_lora(world: World) -> None:
    torch._dynamo.reset()
    counters.clear()
    pipeline: Any = world.family.load_pipeline(world.base, device=torch.device("cpu"), dtype=torch.float32)
    pictures, tensors = pictures_of(world, 0.0, None), random_lora(world, pipeline)

    def images() -> list[Image.Image]:
        made = sample(world.family, pipeline, world.cached, pictures)
        with attached(pipeline, tensors) as lora:
            for strength in (1.0, 0.5):
                lora.set_strength(strength)
                made += sample(world.family, pipeline, world.cached, pictures)
        return [*made, *sample(world.family, pipeline, world.cached, pictures)]

    plain = images()
    (place,) = world.family.parts.denoiser
    compile_blocks(getattr(pipeline, place), world.family.blocks, backend="eager")
    for image, wanted in zip(images(), plain, strict=True):
        assert abs(np.asarray(image).astype(int) - np.asarray(wanted).astype(int)).max() <= 1
    num_graphs = counters["stats"]["unique_graphs"]
    images()
    assert counters["stats"]["unique_graphs"] == num_graphs > 0
    torch._dynamo.reset()


def test_a_file_that_cannot_be_written_stops_the_work(
    world: World, pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> int:
        raise StoreError("The disk is full.")

    monkeypatch.setattr("eridiff.evaluation.sampling.write_png", full)
    cut = batches(all_pictures(PROMPTS[1:3], (1, 2), (0.0,), (), settings_of(world)), 1)
    made: list[int] = []
    with pytest.raises(StoreError, match="disk is full"):
        sample_missing(world.family, pipeline, world.cached, cut, tmp_path, on_batch=made.append)
    assert made == [1]


def test_a_lost_image_is_made_again_to_the_bit_and_others_stay(
    world: World, pipeline: Any, tmp_path: Path
) -> None:
    pictures = all_pictures(PROMPTS[1:3], (1, 2), (0.0,), (), settings_of(world))
    cut = batches(pictures, 3)
    made: list[int] = []
    written = sample_missing(world.family, pipeline, world.cached, cut, tmp_path, on_batch=made.append)
    assert made == [3, 1]
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {f"{picture.key}.png" for picture in pictures}
    assert written == sum(map(len, files.values()))
    lost = pictures[1].path(tmp_path)
    lost.unlink()
    kept = pictures[0].path(tmp_path).stat().st_mtime_ns
    sample_missing(world.family, pipeline, world.cached, cut, tmp_path, on_batch=made.append)
    assert made == [3, 1, 1]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert pictures[0].path(tmp_path).stat().st_mtime_ns == kept


def test_stopping_between_batches_keeps_what_was_made(world: World, pipeline: Any, tmp_path: Path) -> None:
    cut = batches(all_pictures(PROMPTS[1:3], (1, 2), (0.0,), (), settings_of(world)), 2)

    def stop(_count: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        sample_missing(world.family, pipeline, world.cached, cut, tmp_path, on_batch=stop)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_says_what_it_shows_in_any_script(tmp_path: Path) -> None:
    words = {"prompt": "a café, 灯台", "seed": "7"}
    path = tmp_path / "image.png"
    assert write_png(Image.new("RGB", (8, 8), "red"), path, words) == path.stat().st_size
    with Image.open(path) as image:
        assert image.text == words  # pyright: ignore[reportAttributeAccessIssue]


def test_guidance_leads_away_from_the_negative_prompt(world: World, pipeline: Any) -> None:
    plain, negative = (Picture(PROMPTS[1], 1, 0.0, None, settings_of(world, neg)) for neg in ("", "blurry"))
    images = [sample(world.family, pipeline, world.cached, [picture])[0] for picture in (plain, negative)]
    assert same(*images) == (world.family.name == "flux")

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor, nn

from eridiff.evaluation.pictures import LoraFile, Picture, Settings, all_pictures, batches
from eridiff.evaluation.sampling import attached, sample, sample_missing, write_png
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

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eridiff.evaluation.pictures import LoraFile, Picture, Settings, all_pictures, batches

SETTINGS = Settings(
    base="b" * 64,
    base_name="builtin:demo",
    text_space="t" * 64,
    family="any",
    options={},
    negative="blurry",
    width_px=128,
    height_px=64,
    steps=20,
    guidance=4.0,
    dtype="bf16",
)
LORA = LoraFile("step 250", 250, Path("runs/a/1/lora/a-000250.safetensors"), "d" * 64)
LATER = LoraFile("step 500", 500, Path("runs/a/1/lora/a-000500.safetensors"), "e" * 64)
PICTURE = Picture("a cat", 1, 1.0, LORA, SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a dog"},
        {"seed": 2},
        {"strength": 0.5},
        {"lora": LATER},
        {"lora": None},
        *(
            {"settings": replace(SETTINGS, **{name: value})}
            for name, value in {
                "base": "c" * 64,
                "text_space": "u" * 64,
                "family": "other",
                "options": {"max_length": 77},
                "negative": "",
                "width_px": 64,
                "height_px": 128,
                "steps": 21,
                "guidance": 4.5,
                "dtype": "fp32",
            }.items()
        ),
    ],
)
def test_whatever_decides_an_image_decides_its_name(change: dict[str, Any]) -> None:
    assert replace(PICTURE, **change).key != PICTURE.key


def test_where_files_lie_and_what_they_are_called_decides_nothing() -> None:
    moved = replace(LORA, path=Path("elsewhere.safetensors"), label="final", step=7)
    renamed = replace(SETTINGS, base_name="/models/the-same")
    assert replace(PICTURE, lora=moved, settings=renamed).key == PICTURE.key
    assert replace(PICTURE, strength=1).key == PICTURE.key


def test_the_base_is_sampled_once_and_first() -> None:
    pictures = all_pictures(("a", "b"), (1, 2), (1.0, 0.0, 0.5), (LORA, LATER), SETTINGS)
    assert len(pictures) == 4 + 2 * 2 * 4
    assert all(picture.lora is None and picture.strength == 0 for picture in pictures[:4])
    assert all(picture.lora and picture.strength for picture in pictures[4:])
    assert len({picture.key for picture in pictures}) == len(pictures)


def test_a_seed_given_twice_is_sampled_once() -> None:
    assert len(all_pictures(("a", "a"), (1, 1), (0.0,), (), SETTINGS)) == 1


def test_batches_share_a_lora_and_a_strength_and_lose_none() -> None:
    pictures = all_pictures(("a", "b", "c"), (1,), (0.0, 0.5, 1.0), (LORA,), SETTINGS)
    cut = batches(pictures, 2)
    assert [len(batch) for batch in cut] == [2, 1] * 3
    assert [picture for batch in cut for picture in batch] == list(pictures)
    assert all(len({(p.strength, p.lora) for p in batch}) == 1 for batch in cut)


def test_the_file_says_what_it_is() -> None:
    said = PICTURE.metadata()
    assert said["prompt"] == "a cat"
    assert (said["seed"], said["strength"], said["checkpoint"]) == ("1", "1", "step 250")
    assert (said["size"], said["steps"], said["guidance"]) == ("128x64", "20", "4")
    assert (said["negative"], said["base"]) == ("blurry", "builtin:demo")
    assert replace(PICTURE, lora=None, strength=0.0).metadata()["checkpoint"] == "base"

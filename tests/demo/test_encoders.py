from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer, T5TokenizerFast

from eridiff.demo.encoders import build_clip, build_t5
from eridiff.demo.sizes import DEMO
from eridiff.demo.tokenizers import write_clip_tokenizer, write_t5_tokenizer

CAPTION = "a large red circle above a small blue star"


def encode_clip(folder: Path, captions: list[str]) -> tuple[Tensor, Tensor]:
    size = write_clip_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    model = build_clip(DEMO.clip_l, size, activation="quick_gelu", projected=False, generator=generator)
    output = model(
        tokenizer(captions, padding="max_length", return_tensors="pt").input_ids, output_hidden_states=True
    )
    return output.hidden_states[-2], output.pooler_output


def encode_t5(folder: Path, captions: list[str]) -> Tensor:
    size = write_t5_tokenizer(folder)
    tokenizer = T5TokenizerFast.from_pretrained(folder)
    model = build_t5(DEMO.t5, size, generator=torch.Generator().manual_seed(0))
    ids = tokenizer(captions, padding="max_length", max_length=16, return_tensors="pt").input_ids
    return model(ids).last_hidden_state


def far(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() > 0.3 * one.norm())


def test_a_shape_knows_its_own_colour(tmp_path: Path) -> None:
    swapped = "a large blue circle above a small red star"
    (before, after), _ = encode_clip(tmp_path / "clip", [CAPTION, swapped])
    assert far(before[4], after[4])
    assert far(before[9], after[9])
    before, after = encode_t5(tmp_path / "t5", [CAPTION, swapped])
    assert far(before[3], after[3])


def test_place_in_the_caption_is_seen(tmp_path: Path) -> None:
    (hidden,), _ = encode_clip(tmp_path, ["red red red red red red red red red"])
    assert far(hidden[5], hidden[8])


@pytest.mark.parametrize("word", ["large", "red", "circle", "above", "star"])
def test_pooled_state_depends_on_every_word(tmp_path: Path, word: str) -> None:
    _, (before, after) = encode_clip(tmp_path, [CAPTION, CAPTION.replace(word, "and")])
    assert (before - after).norm() > 0.05 * before.norm()

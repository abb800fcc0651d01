from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer, T5TokenizerFast

from eridiff.demo.tokenizers import write_clip_tokenizer, write_t5_tokenizer
from eridiff.demo.vocabulary import words


@pytest.fixture
def clip(tmp_path: Path) -> CLIPTokenizer:
    write_clip_tokenizer(tmp_path)
    return CLIPTokenizer.from_pretrained(tmp_path)


@pytest.fixture
def t5(tmp_path: Path) -> T5TokenizerFast:
    write_t5_tokenizer(tmp_path)
    return T5TokenizerFast.from_pretrained(tmp_path)


def test_every_demo_word_is_one_piece(clip: CLIPTokenizer, t5: T5TokenizerFast) -> None:
    assert [word for word in words() if len(clip(word).input_ids) != 3] == []
    assert [word for word in words() if len(t5(word).input_ids) != 2] == []


def test_clip_frames_and_pads_as_published(tmp_path: Path) -> None:
    for pad, pad_id in (("<|endoftext|>", "highest"), ("!", 0)):
        size = write_clip_tokenizer(tmp_path / "t", pad=pad)
        tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "t")
        ids = tokenizer("red", padding="max_length").input_ids
        assert len(ids) == tokenizer.model_max_length == 77
        assert (ids[0], ids[2]) == (size - 2, size - 1)
        assert set(ids[3:]) == {size - 1 if pad_id == "highest" else pad_id}


@pytest.mark.parametrize("text", ["zebra, 42%", "Übermaß 漢字 🦓", "", "   "])
def test_clip_takes_any_text(clip: CLIPTokenizer, text: str) -> None:
    ids = clip(text).input_ids
    assert ids[-1] == len(clip) - 1
    assert len(ids) == 2 or clip.decode(ids[1:-1]).replace(" ", "") == text.lower().replace(" ", "")


def test_t5_spells_unknown_words_and_ends_with_eos(t5: T5TokenizerFast) -> None:
    ids = t5("zebra, 42%").input_ids
    assert t5.unk_token_id not in ids
    assert ids[-1] == t5.eos_token_id == 1
    assert t5("", padding="max_length", max_length=4).input_ids == [1, 0, 0, 0]

"""Tiny but real tokenizers: CLIP's byte-level BPE and T5's Unigram, over the demo's words.

Each demo word is one piece; any other text falls into bytes (CLIP) or characters (T5).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from eridiff.demo.vocabulary import words

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
CLIP_LENGTH = 77
T5_LENGTH = 512

_T5_SPECIAL = ("<pad>", "</s>", "<unk>")
_T5_SPACE = "\u2581"
_WORD_SCORE, _LETTER_SCORE = -2.0, -10.0


def byte_characters() -> tuple[str, ...]:
    """The 256 characters that stand for bytes in CLIP's BPE, in its order of ids ('!' is 0)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return tuple(chr(byte) for byte in printable) + tuple(chr(256 + index) for index in range(len(others)))


def apply_merges(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The BPE pieces of one word of ASCII letters."""
    pieces = [*word[:-1], word[-1] + END_OF_WORD]
    while len(pieces) > 1:
        pairs = list(itertools.pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        at = pairs.index(best)
        pieces[at : at + 2] = ["".join(best)]
    return pieces


def word_merges(vocabulary: Sequence[str]) -> list[tuple[str, str]]:
    """BPE merges under which each word becomes one piece.

    Words are taken in order; a new merge ranks behind all before it, so it leaves whole words whole.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in vocabulary:
        while len(pieces := apply_merges(word, ranks)) > 1:
            ranks[(pieces[0], pieces[1])] = len(ranks)
    return list(ranks)


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's pieces with their ids, and its merges; EOS has the highest id, as pooling by argmax needs."""
    merges = word_merges(words())
    letters = byte_characters()
    pieces = [
        *letters,
        *(letter + END_OF_WORD for letter in letters),
        *("".join(pair) for pair in merges),
        BOS,
        EOS,
    ]
    return {piece: index for index, piece in enumerate(pieces)}, merges


def write_clip_tokenizer(folder: Path, *, pad: str = EOS) -> int:
    """Write a `CLIPTokenizer` folder and return the size of its vocabulary.

    Args:
        folder: made if absent.
        pad: EOS as CLIP-L has it, or "!" (id 0) as CLIP-G has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = clip_vocabulary()
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": pad, "unk_token": EOS}
    _write_json(folder / "special_tokens_map.json", special)
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": CLIP_LENGTH,
        "tokenizer_class": "CLIPTokenizer",
        **special,
    }
    _write_json(folder / "tokenizer_config.json", config)
    return len(vocabulary)


def t5_pieces() -> list[tuple[str, float]]:
    """T5's Unigram pieces with their log-probabilities: specials, the space, words, single characters."""
    characters = list(map(chr, range(33, 127)))
    return [
        *((piece, 0.0) for piece in _T5_SPECIAL),
        (_T5_SPACE, _WORD_SCORE),
        *((_T5_SPACE + word, _WORD_SCORE) for word in words()),
        *((character, _LETTER_SCORE if character.isalnum() else _WORD_SCORE) for character in characters),
    ]


def write_t5_tokenizer(folder: Path) -> int:
    """Write a `T5Tokenizer` folder (tokenizer.json, no sentinels) and return the size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = t5_pieces()
    pad, eos, unknown = _T5_SPECIAL
    metaspace = {"type": "Metaspace", "replacement": _T5_SPACE, "prepend_scheme": "always", "split": True}
    template = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": eos, "type_id": 0}}]
    second = [{"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": eos, "type_id": 0}}]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(index, piece) for index, piece in enumerate(_T5_SPECIAL)],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, *second],
            "special_tokens": {eos: {"id": eos, "ids": [1], "tokens": [eos]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False},
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    special = {"eos_token": eos, "pad_token": pad, "unk_token": unknown}
    _write_json(folder / "special_tokens_map.json", special)
    config = {"extra_ids": 0, "model_max_length": T5_LENGTH, "tokenizer_class": "T5Tokenizer", **special}
    _write_json(folder / "tokenizer_config.json", config)
    return len(pieces)


def _added_token(index: int, content: str) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": content, **flags}


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

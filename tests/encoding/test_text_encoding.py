from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from eridiff.encoding.text import NOT_FINITE, encode_texts
from eridiff.families.base import Prompts
from eridiff.store.parts import Item
from eridiff.tensors import from_stored
from tests.encoding.world import World

CPU = torch.device("cpu")
CAPTIONS = {
    f"key-{number}": caption for number, caption in enumerate(["", "a cat", "a red circle", "x " * 300, "ü"])
}


def collect(batches: Any) -> dict[str, Item | str]:
    found: dict[str, Item | str] = {}
    for outcomes in batches:
        assert not found.keys() & outcomes.keys()
        found |= outcomes
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_embeddings_are_the_familys_own(world: World, dtype: torch.dtype) -> None:
    found = collect(
        encode_texts(world.family, world.text_encoders, CAPTIONS, device=CPU, dtype=dtype, batch_size=2)
    )
    assert found.keys() == CAPTIONS.keys()
    encoders = world.text_encoders(dtype)
    for key, caption in CAPTIONS.items():
        item = found[key]
        assert isinstance(item, Item)
        wanted = world.family.encode_prompts(encoders, [caption])
        for name, tensor in (("text", wanted.text[0]), ("pooled", wanted.pooled[0])):
            made = from_stored(item.tensors[name])
            assert made.dtype == dtype
            tolerance = 1e-5 if dtype == torch.float32 else 0.05
            torch.testing.assert_close(made, tensor.to(dtype), rtol=tolerance, atol=tolerance)


class Encoders:
    """Says nothing finite about `loud` captions unless it is in float32, and never about `bad` ones."""

    alive: ClassVar[weakref.WeakSet[Encoders]] = weakref.WeakSet()

    def __init__(self, dtype: torch.dtype) -> None:
        gc.collect()
        assert not self.alive, "other encoders are still in memory"
        self.alive.add(self)
        self.dtype = dtype


def encode_prompts(encoders: Encoders, captions: Sequence[str]) -> Prompts:
    text = torch.ones(len(captions), 4, 8, dtype=encoders.dtype)
    for row, caption in enumerate(captions):
        if caption == "bad" or (caption == "loud" and encoders.dtype != torch.float32):
            text[row, 0, 0] = float("inf")
    return Prompts(text, text[:, 0].clone().nan_to_num(posinf=0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_is_not_finite_is_encoded_again_in_float32(dtype: torch.dtype) -> None:
    family: Any = SimpleNamespace(encode_prompts=encode_prompts)
    captions = {"1": "loud", "2": "bad", "3": "plain", "4": "loud"}
    found = collect(encode_texts(family, Encoders, captions, device=CPU, dtype=dtype, batch_size=3))
    assert found.pop("2") == NOT_FINITE
    for item in found.values():
        assert isinstance(item, Item)
        assert from_stored(item.tensors["text"]).dtype == dtype
        assert from_stored(item.tensors["text"]).unique().tolist() == [1.0]
    gc.collect()
    assert not Encoders.alive

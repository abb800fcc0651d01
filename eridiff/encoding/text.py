"""Captions to embeddings: each distinct text once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eridiff.devices import free_memory
from eridiff.encoding.batching import Batcher
from eridiff.families.base import ModelFamily, Prompts
from eridiff.store.parts import Item
from eridiff.tensors import to_stored

NOT_FINITE = "its embedding is not finite, with the encoders in float32 either"


def encode_texts(
    family: ModelFamily,
    load: Callable[[torch.dtype], Any],
    captions: Mapping[str, str],
    *,
    dtype: torch.dtype,
    batch_size: int,
) -> Iterator[Mapping[str, Item | str]]:
    """Embeddings of captions, batch after batch: for each key the item, or the reason why there is none.

    What is not finite is encoded again at the end, with the encoders in float32. The encoders are in memory
    only while this runs.

    Args:
        family: whose encoders they are.
        load: loads them in a precision.
        captions: texts by key.
        dtype: precision of the encoders and of what is stored.
        batch_size: texts at once.

    Raises:
        ModelError: not even one text fits into the device's memory.
    """
    again: dict[str, str] = {}
    for outcomes in _encode(family, load(dtype), captions, dtype, batch_size):
        again |= {key: captions[key] for key, item in outcomes.items() if item is None}
        yield {key: item for key, item in outcomes.items() if item is not None}
    free_memory()
    if again and dtype == torch.float32:
        yield dict.fromkeys(again, NOT_FINITE)
    elif again:
        for outcomes in _encode(family, load(torch.float32), again, dtype, batch_size):
            yield {key: NOT_FINITE if item is None else item for key, item in outcomes.items()}
        free_memory()


def _encode(
    family: ModelFamily, encoders: Any, captions: Mapping[str, str], dtype: torch.dtype, batch_size: int
) -> Iterator[dict[str, Item | None]]:
    """Items of captions, stored in `dtype`; `None` where not finite."""
    batcher = Batcher(batch_size)

    def encode(texts: Sequence[str]) -> list[Prompts]:
        prompts = family.encode_prompts(encoders, texts)
        text, pooled = prompts.text.to("cpu", dtype), prompts.pooled.to("cpu", dtype)
        return [Prompts(text[row], pooled[row]) for row in range(len(texts))]

    keys = list(captions)
    for start in range(0, len(keys), batch_size):
        batch = keys[start : start + batch_size]
        rows = batcher.encode([captions[key] for key in batch], encode)
        yield {key: _item(key, row) for key, row in zip(batch, rows, strict=True)}


def _item(key: str, prompts: Prompts) -> Item | None:
    if not (_finite(prompts.text) and _finite(prompts.pooled)):
        return None
    return Item(key, {"text": to_stored(prompts.text), "pooled": to_stored(prompts.pooled)})


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())

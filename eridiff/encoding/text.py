"""Captions to embeddings: each distinct text once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eridiff.devices import free_memory
from eridiff.encoding.batching import Batcher, finite_rows
from eridiff.encoding.transfer import Arriving
from eridiff.families.base import ModelFamily
from eridiff.store.parts import Item
from eridiff.tensors import to_stored

NOT_FINITE = "its embedding is not finite, with the encoders in float32 either"


def encode_texts(
    family: ModelFamily,
    load: Callable[[torch.dtype], Any],
    captions: Mapping[str, str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    fill_batches: bool = False,
) -> Iterator[Mapping[str, Item | str]]:
    """Embeddings of captions, batch after batch: for each key the item, or the reason why there is none.

    What is not finite is encoded again at the end, with the encoders in float32. The encoders are in memory
    only while this runs. Texts are not sorted by length: every family's encoders take all of them filled up
    to one length, and no mask hides the filling.

    Args:
        family: whose encoders they are.
        load: loads them in a precision.
        captions: texts by key.
        device: where `load` puts them.
        dtype: precision of the encoders and of what is stored.
        batch_size: texts at once.
        fill_batches: encode the empty text along where a batch is smaller, since compiled encoders would be
            compiled again for another size.

    Raises:
        ModelError: not even one text fits into the device's memory.
    """
    again: dict[str, str] = {}
    encode = partial(
        _encode, family, device=device, dtype=dtype, batch_size=batch_size, fill_batches=fill_batches
    )
    for outcomes in encode(load(dtype), captions):
        again |= {key: captions[key] for key, item in outcomes.items() if item is None}
        yield {key: item for key, item in outcomes.items() if item is not None}
    free_memory()
    if again and dtype == torch.float32:
        yield dict.fromkeys(again, NOT_FINITE)
    elif again:
        for outcomes in encode(load(torch.float32), again):
            yield {key: NOT_FINITE if item is None else item for key, item in outcomes.items()}
        free_memory()


def _encode(
    family: ModelFamily,
    encoders: Any,
    captions: Mapping[str, str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    fill_batches: bool,
) -> Iterator[dict[str, Item | None]]:
    """Items of captions, stored in `dtype`; `None` where not finite."""
    batcher = Batcher(batch_size, device)

    def start(keys: Sequence[str]) -> Callable[[], list[tuple[str, Item | None]]]:
        texts = [captions[key] for key in keys]
        if fill_batches:
            texts += [""] * (batcher.batch_size - len(texts))
        prompts = family.encode_prompts(encoders, texts)
        text, pooled = (found[: len(keys)].to(dtype) for found in (prompts.text, prompts.pooled))
        arriving = Arriving(text, pooled, finite_rows(text, pooled))
        return lambda: [*map(_outcome, keys, *arriving.wait())]

    keys = list(captions)
    batches = [keys[at : at + batch_size] for at in range(0, len(keys), batch_size)]
    for outcomes in batcher.encode(batches, start):
        yield dict(outcomes)


def _outcome(key: str, text: Tensor, pooled: Tensor, finite: Tensor) -> tuple[str, Item | None]:
    if not finite:
        return key, None
    return key, Item(key, {"text": to_stored(text), "pooled": to_stored(pooled)})

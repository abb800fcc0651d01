"""Keys of the stored items that samples need. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from eridiff.encoding.wanted import EMPTY_PROMPT
from eridiff.store.snapshots import Sample, text_key


def latent_keys(samples: Iterable[Sample]) -> Iterator[str]:
    """Keys of all latents that may be drawn."""
    for sample in samples:
        yield from sample.latent_keys()


def text_keys(samples: Iterable[Sample]) -> Iterator[str]:
    """Keys of the captions of `samples` and of the empty prompt."""
    yield text_key(EMPTY_PROMPT)
    for sample in samples:
        for caption in sample.captions:
            yield text_key(caption)

"""What precompute made, read back by sample: nothing here can encode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from eridiff.families.base import Moments, Prompts
from eridiff.store.parts import TensorStore
from eridiff.store.reader import Reader
from eridiff.store.snapshots import Sample, text_key
from eridiff.tensors import from_stored

EMPTY_PROMPT = ""


@dataclass(frozen=True)
class Cached:
    """Latents and embeddings of samples, found by content: never by position.

    Attributes:
        latents: reader of items with tensors `mean` and `logvar`, each `[C, h, w]`.
        text: reader of items with tensors `text` `[L, D]` and `pooled` `[P]`.
    """

    latents: Reader
    text: Reader

    def moments(self, sample: Sample, *, mirrored: bool) -> Moments:
        """Posterior of one sample's latents, unscaled, without a batch axis."""
        stored = self.latents.get(sample.latent_key(mirrored))
        return Moments(from_stored(stored["mean"]), from_stored(stored["logvar"]))

    def prompt(self, caption: str) -> Prompts:
        """Embedding of one caption, without a batch axis."""
        stored = self.text.get(text_key(caption))
        return Prompts(from_stored(stored["text"]), from_stored(stored["pooled"]))


def open_cached(latents: TensorStore, text: TensorStore, samples: Iterable[Sample]) -> Cached:
    """Readers of all that training on `samples` can ask for.

    Raises:
        StoreError: something is missing; it says to run precompute.
    """
    samples = tuple(samples)
    return Cached(latents.open(latent_keys(samples)), text.open(text_keys(samples)))


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

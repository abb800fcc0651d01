"""What precompute made, read back by sample: nothing here can encode."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from eridiff.families.base import Moments, Prompts
from eridiff.families.live import NOTHING
from eridiff.store.parts import TensorStore
from eridiff.store.reader import Reader
from eridiff.store.snapshots import Sample, text_key
from eridiff.tensors import from_stored
from eridiff.training.needed import latent_keys, text_keys


class Encoded(Protocol):
    """Latents of samples and embeddings of captions, wherever they come from."""

    def moments(self, sample: Sample, *, mirrored: bool) -> Moments:
        """Posterior of one sample's latents, unscaled, without a batch axis."""
        ...

    def prompt(self, caption: str) -> Prompts:
        """Embedding of one caption, without a batch axis."""
        ...


@dataclass(frozen=True)
class Cached:
    """Latents and embeddings of samples, found by content: never by position.

    Attributes:
        latents: reader of items with tensors `mean` and `logvar`, each `[C, h, w]`.
        text: reader of items with tensors `text` `[L, D]` and `pooled` `[P]`; none where every text encoder
            is trained, so that nothing of an embedding could be kept.
    """

    latents: Reader
    text: Reader | None

    def moments(self, sample: Sample, *, mirrored: bool) -> Moments:
        """Posterior of one sample's latents, unscaled, without a batch axis."""
        stored = self.latents.get(sample.latent_key(mirrored))
        return Moments(from_stored(stored["mean"]), from_stored(stored["logvar"]))

    def prompt(self, caption: str) -> Prompts:
        """Embedding of one caption, without a batch axis."""
        if self.text is None:
            return NOTHING
        stored = self.text.get(text_key(caption))
        return Prompts(from_stored(stored["text"]), from_stored(stored["pooled"]))


def open_cached(latents: TensorStore, text: TensorStore | None, samples: Iterable[Sample]) -> Cached:
    """Readers of all that training on `samples` can ask for; without `text`, of latents alone.

    Raises:
        StoreError: something is missing; it says to run precompute.
    """
    samples = tuple(samples)
    return Cached(latents.open(latent_keys(samples)), text and text.open(text_keys(samples)))

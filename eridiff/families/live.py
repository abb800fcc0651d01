"""Text encoders in use while they change: captions to embeddings through CLIPs that carry a LoRA.

What the other encoders say (T5) does not change and comes from the cache; a family joins the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from eridiff.families import encoders
from eridiff.families.base import ModelFamily, Prompts
from eridiff.families.encoders import ClipStates, TextEncoder

if TYPE_CHECKING:
    from eridiff.families.checkpoints.base import Base

NOTHING = Prompts(torch.empty(0), torch.empty(0))
"""A caption's cached embedding where no encoder is left whose states could be cached."""


@dataclass(frozen=True)
class LiveText:
    """The trainable text encoders of a family, loaded.

    Attributes:
        family: joins their states with what is cached.
        encoders: by component, in the family's order.
    """

    family: ModelFamily
    encoders: Mapping[str, TextEncoder]

    @property
    def models(self) -> dict[str, nn.Module]:
        """The encoders' modules by component."""
        return {name: encoder.model for name, encoder in self.encoders.items()}

    def tokens(self, captions: Sequence[str]) -> tuple[Tensor, ...]:
        """Token ids `[B, 77]` int64 on the CPU, one tensor an encoder."""
        return tuple(encoders.clip_tokens(encoder, captions) for encoder in self.encoders.values())

    def prompts(self, tokens: Sequence[Tensor], cached: Prompts) -> Prompts:
        """Embeddings of captions, differentiable.

        Args:
            tokens: an encoder's ids `[B, K, 77]` of K captions a sample: the first gives the text, the last
                the pooled embedding.
            cached: see `ModelFamily.join_prompts`.
        """
        states = [_states(encoder, ids) for encoder, ids in zip(self.encoders.values(), tokens, strict=True)]
        return self.family.join_prompts(states, cached)


def load(family: ModelFamily, base: Base, *, device: torch.device, dtype: torch.dtype) -> LiveText:
    """The trainable encoders of a base, frozen and in evaluation mode; no other encoder is read.

    Raises:
        ModelError: the base lacks one, or its tokenizer.
    """
    suffixes = {
        encoder.name: encoder.name.removeprefix("text_encoder") for encoder in family.trainable_encoders
    }
    return LiveText(
        family,
        {name: encoders.load(base, suffix, device=device, dtype=dtype) for name, suffix in suffixes.items()},
    )


def _states(encoder: TextEncoder, ids: Tensor) -> ClipStates:
    found = encoders.clip_forward(encoder, ids.flatten(0, 1))
    captions = ids.shape[:2]
    return ClipStates(
        penultimate=found.penultimate.unflatten(0, captions)[:, 0],
        pooled=found.pooled.unflatten(0, captions)[:, -1],
    )

"""CLIP and T5 text encoders with their tokenizers, shared by all families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eridiff.devices import to_device
from eridiff.families.checkpoints.loading import load_model
from eridiff.families.checkpoints.tokenizing import load_tokenizer
from eridiff.families.relative_bias import lay_out_bias

if TYPE_CHECKING:
    from eridiff.families.checkpoints.base import Base


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder and its tokenizer."""

    tokenizer: Any
    model: Any


def load(base: Base, suffix: str, *, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    """The frozen text encoder of components `text_encoder<suffix>` and `tokenizer<suffix>`."""
    tokenizer = load_tokenizer(base, f"tokenizer{suffix}")
    model = load_model(base, f"text_encoder{suffix}", device=device, dtype=dtype)
    lay_out_bias(model)
    return TextEncoder(tokenizer, model)


@dataclass(frozen=True)
class ClipStates:
    """What CLIP says of captions.

    Attributes:
        penultimate: `[B, 77, D]`, the last hidden state but one, without the final norm.
        pooled: `[B, P]`, the state at the end-of-text token after the final norm, projected if the model has
            a projection.
    """

    penultimate: Tensor
    pooled: Tensor


@torch.no_grad()
def clip_states(clip: TextEncoder, captions: Sequence[str]) -> ClipStates:
    """States of captions cut or filled up to the model's length, without a mask."""
    return clip_forward(clip, to_device(clip_tokens(clip, captions), clip.model.device))


def clip_tokens(clip: TextEncoder, captions: Sequence[str]) -> Tensor:
    """Token ids `[B, 77]` int64 on the CPU, of captions cut or filled up to the model's length."""
    return _tokens(clip, captions, clip.model.config.max_position_embeddings)[0]


def clip_forward(clip: TextEncoder, ids: Tensor) -> ClipStates:
    """States of token ids `[B, 77]` on the model's device; gradients are the caller's choice."""
    output = clip.model(ids, output_hidden_states=True)
    pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
    return ClipStates(output.hidden_states[-2], pooled)


@torch.no_grad()
def t5_states(t5: TextEncoder, captions: Sequence[str], length: int, *, zero_padding: bool = False) -> Tensor:
    """Last hidden state `[B, length, D]` of captions cut or filled up to `length`, without a mask.

    Args:
        t5: encoder and tokenizer.
        captions: B texts.
        length: tokens, end-of-text included.
        zero_padding: set the states of filling tokens to zero afterwards.
    """
    ids, is_text = (to_device(tokens, t5.model.device) for tokens in _tokens(t5, captions, length))
    states = t5.model(ids).last_hidden_state
    return states * is_text[..., None] if zero_padding else states


def _tokens(encoder: TextEncoder, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids `[B, length]`, and 1 where a token is text and 0 where it fills up."""
    tokens = encoder.tokenizer(
        list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return tokens.input_ids, tokens.attention_mask

"""Attention processors that compute what diffusers' own compute for the families' denoisers.

They go through diffusers' extension point (`set_attn_processor`), and differ in two ways: projections of one
input may be one product, and the gradient of attention is dense. Denoisers pass no mask.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from eridiff.families.attention.attend import attend
from eridiff.families.attention.projections import projected


class FluxProcessor:
    """`FluxAttnProcessor`: text before image, normed and turned; a single block's has one stream."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The image's tokens, and the text's where there are any, or one stream's: `[B, S, D]` each."""
        query, key, value = _heads(attn, hidden_states, "to_q", "to_k", "to_v")
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            text = _heads(attn, encoder_hidden_states, "add_q_proj", "add_k_proj", "add_v_proj")
            query = torch.cat([attn.norm_added_q(text[0]), query], dim=1)
            key = torch.cat([attn.norm_added_k(text[1]), key], dim=1)
            value = torch.cat([text[2], value], dim=1)
        query, key = _turned(query, image_rotary_emb), _turned(key, image_rotary_emb)
        mixed = attend(query, key, value).flatten(2)
        if encoder_hidden_states is None:
            return mixed
        num_text = encoder_hidden_states.shape[1]
        text_out, image_out = mixed[:, :num_text].contiguous(), mixed[:, num_text:].contiguous()
        return _out(attn, image_out), attn.to_add_out(text_out)


class JointProcessor:
    """`JointAttnProcessor2_0`, of SD3.5: image before text; a dual block's second attention has no text."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The image's tokens, and the text's where there are any: `[B, S, D]` each."""
        query, key, value = _heads(attn, hidden_states, "to_q", "to_k", "to_v")
        query, key = _normed(attn.norm_q, query), _normed(attn.norm_k, key)
        if encoder_hidden_states is None:
            return _out(attn, attend(query, key, value).flatten(2))
        text = _heads(attn, encoder_hidden_states, "add_q_proj", "add_k_proj", "add_v_proj")
        query = torch.cat([query, _normed(attn.norm_added_q, text[0])], dim=1)
        key = torch.cat([key, _normed(attn.norm_added_k, text[1])], dim=1)
        mixed = attend(query, key, torch.cat([value, text[2]], dim=1)).flatten(2)
        num_image = hidden_states.shape[1]
        text_out = mixed[:, num_image:]
        return (
            _out(attn, mixed[:, :num_image]),
            text_out if attn.context_pre_only else attn.to_add_out(text_out),
        )


class CrossProcessor:
    """`AttnProcessor2_0`, of SDXL's U-Net: over the image itself, or from the image over the text."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        """The image's tokens `[B, S, D]`."""
        if encoder_hidden_states is None:
            query, key, value = _heads(attn, hidden_states, "to_q", "to_k", "to_v")
        else:
            (query,) = _heads(attn, hidden_states, "to_q")
            key, value = _heads(attn, encoder_hidden_states, "to_k", "to_v")
        return _out(attn, attend(query, key, value).flatten(2))


def _heads(attn: Any, tokens: Tensor, *names: str) -> tuple[Tensor, ...]:
    """The projections `names` of tokens `[B, S, D]` by heads, `[B, S, H, D / H]` each."""
    return tuple(one.unflatten(-1, (attn.heads, -1)) for one in projected(attn, tokens, *names))


def _normed(norm: nn.Module | None, heads: Tensor) -> Tensor:
    return heads if norm is None else norm(heads)


def _turned(heads: Tensor, angles: Any) -> Tensor:
    """Rotary embedding by cosines and sines, `[S, D / H]` each."""
    turned = apply_rotary_emb(heads, angles, sequence_dim=1)
    assert isinstance(turned, Tensor)
    return turned


def _out(attn: Any, tokens: Tensor) -> Tensor:
    """The module's last layer and its dropout."""
    return attn.to_out[1](attn.to_out[0](tokens))

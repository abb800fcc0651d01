"""Attention of diffusers' AutoencoderKL by matrix products.

The VAE's one head is 512 wide, and flash kernels end at 256: what scaled_dot_product_attention is left
with on a GPU is slower than plain products, or holds all scores at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SCORES_BYTES = 2**28


# An operator, since a compiler would unroll the loop, and for each size of image anew.
@torch.library.custom_op("eridiff::attention_by_products", mutates_args=())
def attention_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`softmax(q k^T) v` of one head, each `[B, S, D]`, some queries at a time."""
    num_queries = max(1, _SCORES_BYTES // (key[..., 0].numel() * key.element_size()))
    keys = key.transpose(1, 2)
    mixed = [(some @ keys).softmax(dim=-1) @ value for some in query.split(num_queries, dim=1)]
    return torch.cat(mixed, dim=1)


@attention_by_products.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return query.new_empty(query.shape)


class ProductAttention:
    """An attention processor of diffusers for one head over an image."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: None = None,
    ) -> Tensor:
        """The layer's output, of the shape of its input `[B, C, H, W]`; a VAE passes nothing else."""
        tokens = attn.group_norm(hidden_states.flatten(2)).transpose(1, 2)
        mixed = attention_by_products(attn.to_q(tokens) * attn.scale, attn.to_k(tokens), attn.to_v(tokens))
        return attn.to_out[0](mixed).transpose(1, 2).reshape(hidden_states.shape) + hidden_states


def use_products(vae: Any) -> None:
    """Lets the attention of a VAE's encoder and decoder run by matrix products."""
    for part in (vae.encoder, vae.decoder):
        for attention in part.mid_block.attentions:
            if attention is not None:
                attention.set_processor(ProductAttention())

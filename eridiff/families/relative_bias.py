"""T5's bias of relative positions, laid out as fused attention reads it.

T5 makes it as `[queries, keys, heads]` and hands it on as `[1, heads, queries, keys]` without moving it.
Torch's fused kernels want the keys of a row side by side; given anything else `scaled_dot_product_attention`
takes products in float32 without a word, which is almost half of the time of T5-XXL.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def lay_out_bias(encoder: nn.Module) -> None:
    """Lets the layers of a text encoder that make a bias of relative positions put the heads outermost.

    The bias keeps its values and its shape. Encoders without one, as CLIP's, stay as they are.
    """
    for module in encoder.modules():
        if getattr(module, "has_relative_attention_bias", False):
            embedding: Any = module.relative_attention_bias
            embedding.register_forward_hook(_heads_outermost)


def _heads_outermost(_embedding: nn.Module, _buckets: Any, bias: Tensor) -> Tensor:
    return bias.permute(2, 0, 1).contiguous().permute(1, 2, 0)

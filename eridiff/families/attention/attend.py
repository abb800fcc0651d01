"""Attention whose gradient lies in memory in one way only.

torch 2.11 looks up cuDNN's plan of a backward pass by the layouts of q, k and v, and not by that of the
output's gradient. In a transformer that gradient may be a slice of a wider tensor in one block and dense in
the next: the first plan then reads the second gradient with strides that are not its own, and gives wrong
numbers, NaN or an illegal memory access. Here every gradient is dense, so that every plan is right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`softmax(q k^T / sqrt(D)) v` of each head, on whichever backend the context allows.

    Args:
        query: `[B, S, H, D]`.
        key: `[B, T, H, D]`.
        value: `[B, T, H, D]`.

    Returns:
        `[B, S, H, D]`.
    """
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return _DenseGradient.apply(scaled_dot_product_attention(query, key, value).transpose(1, 2))


class _DenseGradient(torch.autograd.Function):
    """The identity, whose gradient is copied unless it is dense."""

    @staticmethod
    def forward(output: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return gradient.contiguous()

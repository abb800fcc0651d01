"""The encoder of diffusers' AutoencoderKL in float16, without overflow.

Its residual stream grows past what float16 holds. But each branch begins with a group norm, which takes any
scale away: with the stream a power of two smaller, and with it the norms' epsilon, the encoder is the same
function, to the bit in float32. Float16's products round as TensorFloat-32's do, at twice their speed.
"""

from __future__ import annotations

from typing import Any

import torch

SCALE = 2.0**-5
"""The stream may reach two million."""


@torch.no_grad()
def shrink(encoder: Any, scale: float = SCALE) -> None:
    """Makes what flows through a VAE's encoder smaller by `scale`, in place; its outputs stay as they are."""
    _multiply(encoder.conv_in, scale)
    blocks = [*encoder.down_blocks, encoder.mid_block]
    for resnet in (resnet for block in blocks for resnet in block.resnets):
        for convolution in (resnet.conv1, resnet.conv2):
            _multiply(convolution, scale)
        if resnet.conv_shortcut is not None:
            _multiply_bias(resnet.conv_shortcut, scale)
        _shrink_norms(resnet.norm1, resnet.norm2, scale=scale)
    for block in encoder.down_blocks:
        for downsampler in block.downsamplers or ():
            _multiply_bias(downsampler.conv, scale)
    for attention in encoder.mid_block.attentions:
        if attention is not None:
            _multiply(attention.to_out[0], scale)
            _shrink_norms(attention.group_norm, scale=scale)
    _shrink_norms(encoder.conv_norm_out, scale=scale)


def _multiply(layer: Any, scale: float) -> None:
    layer.weight.mul_(scale)
    _multiply_bias(layer, scale)


def _multiply_bias(layer: Any, scale: float) -> None:
    if layer.bias is not None:
        layer.bias.mul_(scale)


def _shrink_norms(*norms: Any, scale: float) -> None:
    for norm in norms:
        norm.eps *= scale**2

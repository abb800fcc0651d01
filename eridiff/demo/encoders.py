"""Tiny text encoders that no one trained: random words, and attention that looks at fixed neighbours.

A transformer with plain random weights mixes all words of a caption alike, so that "a red circle above a blue
square" does not say which of the two is red. Here each head of CLIP and T5 attends, by position alone, to the
word at a fixed offset; what it reads and writes is random. A word's state then holds the word itself and its
neighbours, which is what a denoiser needs to bind colours to shapes. Half of the heads of a CLIP's last layer
look at all words, for the pooled embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from eridiff.demo.tokenizers import CLIP_LENGTH

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPTextEmbeddings
    from transformers.models.t5.modeling_t5 import T5Attention, T5Block, T5DenseGatedActDense

_POSITION_SCALE = 1.4
_SHARPNESS = 3.0
_NEIGHBOUR_SCALE = 0.6
_FEED_FORWARD_SCALE = 0.4
_BIAS_PEAK = 8.0
_MEAN_GAIN = 3.0
"""A mean over about ten words is that much smaller than a word."""


@dataclass(frozen=True)
class ClipSize:
    """Widths of a CLIP text encoder."""

    width: int
    heads: int
    layers: int
    feed_forward: int
    projection: int

    @property
    def head_width(self) -> int:
        """Width of a head; as many of the last features of a state tell its position."""
        return self.width // self.heads


@dataclass(frozen=True)
class T5Size:
    """Widths of a T5 encoder."""

    width: int
    heads: int
    head_width: int
    layers: int
    feed_forward: int


def build_clip(
    size: ClipSize, vocabulary: int, *, activation: str, projected: bool, generator: torch.Generator
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A frozen float32 CLIP text encoder that tells words, their neighbours and their place apart.

    Args:
        size: widths.
        vocabulary: number of token ids; the highest is EOS.
        activation: of the feed-forward, e.g. `quick_gelu`.
        projected: whether the pooled state is projected (`CLIPTextModelWithProjection`).
        generator: draws all weights.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        projection_dim=size.projection,
        max_position_embeddings=CLIP_LENGTH,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=2,  # the published configs' value: pool at the highest id
        pad_token_id=1,
    )
    if not projected:
        plain = CLIPTextModel(config)
        _set_clip(plain, size, generator)
        return plain.eval().requires_grad_(False)
    model = CLIPTextModelWithProjection(config)
    _set_clip(model.text_model, size, generator)
    with torch.no_grad():
        model.text_projection.weight.copy_(_draw(model.text_projection.weight, generator))
    return model.eval().requires_grad_(False)


def build_t5(size: T5Size, vocabulary: int, *, generator: torch.Generator) -> T5EncoderModel:
    """A frozen float32 T5 encoder whose heads look at the words before and after, as `build_clip`."""
    from transformers import T5Config, T5EncoderModel

    untied: Mapping[str, Any] = {"tie_word_embeddings": False}  # taken, but not annotated
    config = T5Config(
        vocab_size=vocabulary,
        d_model=size.width,
        d_kv=size.head_width,
        d_ff=size.feed_forward,
        num_layers=size.layers,
        num_heads=size.heads,
        feed_forward_proj="gated-gelu",
        **untied,
    )
    model = T5EncoderModel(config)
    blocks = cast("list[T5Block]", list(model.encoder.block))
    with torch.no_grad():
        model.shared.weight.normal_(generator=generator)
        for block in blocks:
            _set_t5_block(block, generator)
        bias = _attention(blocks[0]).relative_attention_bias
        _set_relative_bias(bias, size.heads, config.relative_attention_num_buckets)
    return model.eval().requires_grad_(False)


def _draw(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random weights of a linear layer that keep the variance of its input."""
    return torch.randn(like.shape, generator=generator) / math.sqrt(like.shape[-1])


def _frequencies(count: int) -> Tensor:
    """Angular frequencies, in radians a word, whose cosines add up to one narrow peak."""
    return 2.6 * 0.7 ** torch.arange(count, dtype=torch.float32)


@torch.no_grad()
def _set_clip(text: CLIPTextModel, size: ClipSize, generator: torch.Generator) -> None:
    _set_clip_embeddings(text.embeddings, size, generator)
    for index, layer in enumerate(cast("list[CLIPEncoderLayer]", list(text.encoder.layers))):
        last = index == size.layers - 1
        _set_clip_layer(layer, size, everywhere=size.heads // 2 if last else 0, generator=generator)


def _set_clip_embeddings(embeddings: CLIPTextEmbeddings, size: ClipSize, generator: torch.Generator) -> None:
    pairs = size.head_width // 2
    words = size.width - 2 * pairs
    embeddings.token_embedding.weight.zero_()
    embeddings.token_embedding.weight[:, :words].normal_(generator=generator)
    place = torch.arange(CLIP_LENGTH, dtype=torch.float32)[:, None] * _frequencies(pairs)
    embeddings.position_embedding.weight.zero_()
    embeddings.position_embedding.weight[:, words : words + pairs] = _POSITION_SCALE * place.cos()
    embeddings.position_embedding.weight[:, words + pairs :] = _POSITION_SCALE * place.sin()


def _set_clip_layer(
    layer: CLIPEncoderLayer, size: ClipSize, *, everywhere: int, generator: torch.Generator
) -> None:
    """Head i looks `i + 1` words back; the last `everywhere` heads look at all words before."""
    pairs = size.head_width // 2
    words = size.width - 2 * pairs
    attention, mlp = layer.self_attn, layer.mlp
    for linear in (
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.out_proj,
        mlp.fc1,
        mlp.fc2,
    ):
        linear.weight.zero_()
        linear.bias.zero_()
    gain = _SHARPNESS**0.5 * size.head_width**0.25 / _POSITION_SCALE
    for head in range(size.heads):
        rows = slice(head * size.head_width, head * size.head_width + 2 * pairs)
        if head < size.heads - everywhere:
            attention.q_proj.weight[rows, words:] = gain * _turn(pairs, -(head + 1))
            attention.k_proj.weight[rows, words:] = gain * torch.eye(2 * pairs)
    value, out = attention.v_proj.weight, attention.out_proj.weight
    value[:, :words] = _draw(value[:, :words], generator)
    value[size.width - everywhere * size.head_width :] *= _MEAN_GAIN
    out[:words] = _NEIGHBOUR_SCALE * math.sqrt(size.heads) * _draw(out[:words], generator)
    mlp.fc1.weight.copy_(_draw(mlp.fc1.weight, generator))
    mlp.fc2.weight[:words] = _FEED_FORWARD_SCALE * _draw(mlp.fc2.weight[:words], generator)


def _turn(pairs: int, offset: int) -> Tensor:
    """The matrix that turns position features (cosines, then sines) of place p into those of p + offset."""
    angle = offset * _frequencies(pairs)
    cos, sin = torch.diag(angle.cos()), torch.diag(angle.sin())
    return torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])


def _set_t5_block(block: T5Block, generator: torch.Generator) -> None:
    attention = _attention(block)
    feed_forward = cast("T5DenseGatedActDense", block.layer[1].DenseReluDense)
    attention.q.weight.copy_(0.1 * _draw(attention.q.weight, generator))
    attention.k.weight.copy_(0.1 * _draw(attention.k.weight, generator))
    attention.v.weight.copy_(_draw(attention.v.weight, generator))
    attention.o.weight.copy_(_NEIGHBOUR_SCALE * _draw(attention.o.weight, generator))
    for linear in (feed_forward.wi_0, feed_forward.wi_1):
        linear.weight.copy_(_draw(linear.weight, generator))
    feed_forward.wo.weight.copy_(_FEED_FORWARD_SCALE * _draw(feed_forward.wo.weight, generator))


def _attention(block: T5Block) -> T5Attention:
    return cast("T5Attention", block.layer[0].SelfAttention)


def _set_relative_bias(bias: nn.Embedding, heads: int, buckets: int) -> None:
    """Heads look one word back, one ahead, two back, two ahead, ...; the last head looks everywhere."""
    bias.weight.zero_()
    for head in range(heads - 1):
        distance, ahead = head // 2 + 1, head % 2
        bias.weight[distance + ahead * (buckets // 2), head] = _BIAS_PEAK

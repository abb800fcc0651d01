"""The autoencoder of all families: CompVis' names and diffusers'."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from eridiff.errors import ModelError
from eridiff.families.checkpoints.keys import Link, Names, Shape, Structure, count

_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}


def structure(keys: Collection[str]) -> Structure:
    """Levels, and ResNets a level of the encoder; the decoder has one more."""
    return {
        "levels": max(count(keys, "encoder.down."), count(keys, "encoder.down_blocks.")),
        "layers": max(count(keys, "encoder.down.0.block."), count(keys, "encoder.down_blocks.0.resnets.")),
    }


def links(counts: Structure) -> list[Link]:
    """All modules with weights. The decoder's levels are numbered from the other end."""
    levels, layers = counts["levels"], counts["layers"]
    found = [Link("quant_conv", ("quant_conv",)), Link("post_quant_conv", ("post_quant_conv",))]
    for side in ("encoder", "decoder"):
        found += _ends(side)
    for level in range(levels):
        old, new = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for layer in range(layers):
            found += _resnet(f"{old}.block.{layer}", f"{new}.resnets.{layer}")
        found.append(Link(f"{old}.downsample.conv", (f"{new}.downsamplers.0.conv",)))
        old, new = f"decoder.up.{levels - 1 - level}", f"decoder.up_blocks.{level}"
        for layer in range(layers + 1):
            found += _resnet(f"{old}.block.{layer}", f"{new}.resnets.{layer}")
        found.append(Link(f"{old}.upsample.conv", (f"{new}.upsamplers.0.conv",)))
    return found


def _ends(side: str) -> list[Link]:
    """Both ends and the middle, whose attention is made of 1x1 convolutions in CompVis' files."""
    attention, matrix = (
        f"{side}.mid_block.attentions.0",
        {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
    )
    return [
        Link(f"{side}.conv_in", (f"{side}.conv_in",)),
        Link(f"{side}.conv_out", (f"{side}.conv_out",)),
        Link(f"{side}.norm_out", (f"{side}.conv_norm_out",)),
        *_resnet(f"{side}.mid.block_1", f"{side}.mid_block.resnets.0"),
        *_resnet(f"{side}.mid.block_2", f"{side}.mid_block.resnets.1"),
        Link(f"{side}.mid.attn_1.norm", (f"{attention}.group_norm",)),
        *(
            Link(f"{side}.mid.attn_1.{old}", (f"{attention}.{new}",), form="flattened")
            for old, new in matrix.items()
        ),
    ]


def _resnet(old: str, new: str) -> list[Link]:
    return [Link(f"{old}.{ours}", (f"{new}.{theirs}",)) for ours, theirs in _RESNET.items()]


def configure(facts: dict[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The autoencoder's configuration, with sizes from the shapes of its tensors; its scale is the family's.

    Raises:
        ModelError: its widths do not divide into the usual groups.
    """
    counts = structure(shapes)
    levels = range(counts["levels"])
    widths = [shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels]
    if any(width % facts["norm_num_groups"] for width in widths):
        raise ModelError(
            "the groups of this autoencoder's norms cannot be told from its weights",
            found=f"widths of {widths}",
            wanted=f"multiples of {facts['norm_num_groups']}",
            fix="put its config.json beside the tokenizers: <model.tokenizers>/vae/config.json",
        )
    return facts | {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": counts["layers"],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


NAMES = Names(structure, links, mark="decoder.mid.block_1.conv1.weight")

"""SD3's transformer: names of Stability's file and of diffusers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from eridiff.families.checkpoints.keys import Link, Names, Shape, Structure, count
from eridiff.families.checkpoints.loranames import LoraNames

_CHANNELS = 16

_OUTSIDE = (
    Link("pos_embed", ("pos_embed.pos_embed",)),
    Link("x_embedder.proj", ("pos_embed.proj",)),
    Link("t_embedder.mlp.0", ("time_text_embed.timestep_embedder.linear_1",)),
    Link("t_embedder.mlp.2", ("time_text_embed.timestep_embedder.linear_2",)),
    Link("y_embedder.mlp.0", ("time_text_embed.text_embedder.linear_1",)),
    Link("y_embedder.mlp.2", ("time_text_embed.text_embedder.linear_2",)),
    Link("context_embedder", ("context_embedder",)),
    Link("final_layer.linear", ("proj_out",)),
    Link("final_layer.adaLN_modulation.1", ("norm_out.linear",), form="swapped"),
)


def structure(keys: Collection[str]) -> Structure:
    """Number of blocks, and of those at the start with a second attention over the image."""
    dual = [key for key in keys if ".attn2." in key]
    return {
        "layers": max(count(keys, "joint_blocks."), count(keys, "transformer_blocks.")),
        "dual": max(count(dual, "joint_blocks."), count(dual, "transformer_blocks.")),
    }


def links(counts: Structure) -> list[Link]:
    """All modules with weights."""
    layers = counts["layers"]
    blocks = [
        link
        for index in range(layers)
        for link in [
            *_image(index, dual=index < counts["dual"]),
            *_context(index, last=index == layers - 1),
        ]
    ]
    return [*_OUTSIDE, *blocks]


def _image(index: int, *, dual: bool) -> list[Link]:
    old, new = f"joint_blocks.{index}.x_block", f"transformer_blocks.{index}"
    attentions = [
        link for name in (("attn", "attn2") if dual else ("attn",)) for link in _attention(old, new, name)
    ]
    return [
        *attentions,
        Link(f"{old}.mlp.fc1", (f"{new}.ff.net.0.proj",)),
        Link(f"{old}.mlp.fc2", (f"{new}.ff.net.2",)),
        Link(f"{old}.adaLN_modulation.1", (f"{new}.norm1.linear",)),
    ]


def _attention(old: str, new: str, name: str) -> list[Link]:
    return [
        Link(f"{old}.{name}.qkv", (f"{new}.{name}.to_q", f"{new}.{name}.to_k", f"{new}.{name}.to_v")),
        Link(f"{old}.{name}.proj", (f"{new}.{name}.to_out.0",)),
        Link(f"{old}.{name}.ln_q", (f"{new}.{name}.norm_q",)),
        Link(f"{old}.{name}.ln_k", (f"{new}.{name}.norm_k",)),
    ]


def _context(index: int, *, last: bool) -> list[Link]:
    """The text stream; in the last block it ends at the attention, and its modulation is a plain norm's."""
    old, new = f"joint_blocks.{index}.context_block", f"transformer_blocks.{index}"
    always = [
        Link(
            f"{old}.attn.qkv",
            (f"{new}.attn.add_q_proj", f"{new}.attn.add_k_proj", f"{new}.attn.add_v_proj"),
        ),
        Link(f"{old}.attn.ln_q", (f"{new}.attn.norm_added_q",)),
        Link(f"{old}.attn.ln_k", (f"{new}.attn.norm_added_k",)),
        Link(
            f"{old}.adaLN_modulation.1",
            (f"{new}.norm1_context.linear",),
            form="swapped" if last else "same",
        ),
    ]
    if last:
        return always
    return [
        *always,
        Link(f"{old}.attn.proj", (f"{new}.attn.to_add_out",)),
        Link(f"{old}.mlp.fc1", (f"{new}.ff_context.net.0.proj",)),
        Link(f"{old}.mlp.fc2", (f"{new}.ff_context.net.2",)),
    ]


def configure(facts: dict[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The transformer's configuration, with sizes from the shapes of its tensors."""
    inner, channels, patch, _ = shapes["pos_embed.proj.weight"]
    norm = shapes.get("transformer_blocks.0.attn.norm_q.weight")
    head = norm[0] if norm else facts["attention_head_dim"]
    counts = structure(shapes)
    return facts | {
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // patch**2,
        "num_layers": counts["layers"],
        "dual_attention_layers": list(range(counts["dual"])),
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed.pos_embed"][1]),
        "qk_norm": "rms_norm" if norm else None,
    }


def variant(config: Mapping[str, Any]) -> str:
    """SD3 medium, which does not normalise queries and keys, or one of SD3.5's two."""
    if config["in_channels"] != _CHANNELS:
        return f"unknown, with {config['in_channels']} input channels"
    if not config.get("qk_norm"):
        return "3-medium"
    return "3.5-medium" if config.get("dual_attention_layers") else "3.5-large"


NAMES = Names(structure, links, mark="joint_blocks.0.x_block.attn.qkv.weight")

_PUBLISHED = {1536: {"layers": 24, "dual": 13}, 2432: {"layers": 38, "dual": 0}}
"""Medium and large, by the width of their streams."""


def lora_structure(widths: Mapping[str, int]) -> Structure | None:
    """That of the published variant whose attention is as wide as the file's."""
    return next((_PUBLISHED[width] for width in widths.values() if width in _PUBLISHED), None)


def lora_metadata(counts: Structure) -> dict[str, str]:
    """What programs recognise an SD3.5 LoRA by; only the medium variant has a second attention."""
    variant = "medium" if counts["dual"] else "large"
    return {
        "ss_base_model_version": f"sd3.5_{variant}",
        "modelspec.architecture": f"stable-diffusion-v3.5-{variant}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/sd3.5",
        "ss_network_module": "networks.lora_sd3",
    }


LORA = LoraNames(
    default="diffusers",
    structure=lora_structure,
    metadata=lora_metadata,
    # diffusers has no reader for kohya's SD3: it loads nothing of such a file, with a warning.
    readers={"kohya": ("comfyui",), "diffusers": ("comfyui", "diffusers")},
    comfy_prefixes=("transformer.", "base_model.model.", "lora_transformer_", "lycoris_"),
    text_encoders={"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
)

"""Flux's transformer: names of Black Forest Labs' file and of diffusers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from eridiff.errors import ModelError
from eridiff.families.checkpoints.keys import Link, Names, Shape, Structure, count
from eridiff.families.checkpoints.loranames import LoraNames

_NORM = {"scale": "weight"}
_CHANNELS = 64
_TOOLS = {384: "fill", 128: "canny or depth"}
"""By input channels."""

_OUTSIDE = (
    Link("img_in", ("x_embedder",)),
    Link("txt_in", ("context_embedder",)),
    Link("final_layer.linear", ("proj_out",)),
    Link("final_layer.adaLN_modulation.1", ("norm_out.linear",), form="swapped"),
)

_EMBEDDERS = {
    "time_in": "timestep_embedder",
    "vector_in": "text_embedder",
    "guidance_in": "guidance_embedder",
}


def structure(keys: Collection[str]) -> Structure:
    """Numbers of double and single blocks."""
    return {
        "double": max(count(keys, "double_blocks."), count(keys, "transformer_blocks.")),
        "single": max(count(keys, "single_blocks."), count(keys, "single_transformer_blocks.")),
    }


def links(counts: Structure) -> list[Link]:
    """All modules with weights."""
    embedders = [
        Link(f"{original}.{layer}", (f"time_text_embed.{diffusers}.linear_{number}",))
        for original, diffusers in _EMBEDDERS.items()
        for layer, number in (("in_layer", 1), ("out_layer", 2))
    ]
    double = [link for index in range(counts["double"]) for link in _double(index)]
    single = [link for index in range(counts["single"]) for link in _single(index)]
    return [*_OUTSIDE, *embedders, *double, *single]


def _double(index: int) -> list[Link]:
    old, new = f"double_blocks.{index}", f"transformer_blocks.{index}"
    return [
        Link(f"{old}.img_attn.qkv", (f"{new}.attn.to_q", f"{new}.attn.to_k", f"{new}.attn.to_v")),
        Link(
            f"{old}.txt_attn.qkv",
            (f"{new}.attn.add_q_proj", f"{new}.attn.add_k_proj", f"{new}.attn.add_v_proj"),
        ),
        Link(f"{old}.img_attn.proj", (f"{new}.attn.to_out.0",)),
        Link(f"{old}.txt_attn.proj", (f"{new}.attn.to_add_out",)),
        Link(f"{old}.img_attn.norm.query_norm", (f"{new}.attn.norm_q",), leaves=_NORM),
        Link(f"{old}.img_attn.norm.key_norm", (f"{new}.attn.norm_k",), leaves=_NORM),
        Link(f"{old}.txt_attn.norm.query_norm", (f"{new}.attn.norm_added_q",), leaves=_NORM),
        Link(f"{old}.txt_attn.norm.key_norm", (f"{new}.attn.norm_added_k",), leaves=_NORM),
        Link(f"{old}.img_mlp.0", (f"{new}.ff.net.0.proj",)),
        Link(f"{old}.img_mlp.2", (f"{new}.ff.net.2",)),
        Link(f"{old}.txt_mlp.0", (f"{new}.ff_context.net.0.proj",)),
        Link(f"{old}.txt_mlp.2", (f"{new}.ff_context.net.2",)),
        Link(f"{old}.img_mod.lin", (f"{new}.norm1.linear",)),
        Link(f"{old}.txt_mod.lin", (f"{new}.norm1_context.linear",)),
    ]


def _single(index: int) -> list[Link]:
    old, new = f"single_blocks.{index}", f"single_transformer_blocks.{index}"
    return [
        Link(
            f"{old}.linear1",
            (f"{new}.attn.to_q", f"{new}.attn.to_k", f"{new}.attn.to_v", f"{new}.proj_mlp"),
            shares=(1, 1, 1, 4),
        ),
        Link(f"{old}.linear2", (f"{new}.proj_out",)),
        Link(f"{old}.norm.query_norm", (f"{new}.attn.norm_q",), leaves=_NORM),
        Link(f"{old}.norm.key_norm", (f"{new}.attn.norm_k",), leaves=_NORM),
        Link(f"{old}.modulation.lin", (f"{new}.norm.linear",)),
    ]


def configure(facts: dict[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The transformer's configuration, with sizes from the shapes of its tensors.

    Raises:
        ModelError: the heads are not as wide as Flux's, so that their rotary axes are unknown.
    """
    inner, channels = shapes["x_embedder.weight"]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    if sum(facts["axes_dims_rope"]) != head:
        raise ModelError(
            "the rotary axes of this transformer cannot be told from its weights",
            found=f"heads of {head}",
            wanted=f"heads of {sum(facts['axes_dims_rope'])}",
            fix="put its config.json beside the tokenizers: <model.tokenizers>/transformer/config.json",
        )
    counts = structure(shapes)
    return facts | {
        "in_channels": channels,
        "num_layers": counts["double"],
        "num_single_layers": counts["single"],
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
    }


def variant(config: Mapping[str, Any]) -> str:
    """Dev or schnell, or a tool that takes more than latents."""
    if config["in_channels"] != _CHANNELS:
        return _TOOLS.get(config["in_channels"], f"unknown, with {config['in_channels']} input channels")
    return "dev" if config["guidance_embeds"] else "schnell"


NAMES = Names(structure, links, mark="double_blocks.0.img_attn.qkv.weight")


def lora_structure(widths: Mapping[str, int]) -> Structure:
    """The published structure: names in a LoRA file are among its names, whatever the file leaves out."""
    return {"double": 19, "single": 38}


def lora_metadata(counts: Structure) -> dict[str, str]:
    """What programs recognise a Flux LoRA by."""
    return {
        "ss_base_model_version": "flux1",
        "modelspec.architecture": "Flux.1-dev/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        "ss_network_module": "networks.lora_flux",
    }


LORA = LoraNames(
    default="kohya",
    structure=lora_structure,
    metadata=lora_metadata,
    readers={"kohya": ("comfyui", "diffusers"), "diffusers": ("comfyui", "diffusers")},
    comfy_prefixes=("transformer.", "lora_transformer_", "lycoris_"),
    kohya_widths=frozenset({3072}),  # diffusers' reader has the sizes of the published model in it
    text_encoders={"text_encoder": "lora_te1"},
)

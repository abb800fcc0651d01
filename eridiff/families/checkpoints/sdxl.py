"""SDXL's UNet: names of Stability's file (sgm) and of diffusers, for any number of levels and layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from eridiff.errors import ModelError
from eridiff.families.checkpoints.keys import Link, Names, Shape, Structure, count
from eridiff.families.checkpoints.loranames import LoraNames

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}

_TRANSFORMER = (
    *(f"{attn}.{layer}" for attn in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj",
    "ff.net.2",
    "norm1",
    "norm2",
    "norm3",
)

_OUTSIDE = (
    Link("time_embed.0", ("time_embedding.linear_1",)),
    Link("time_embed.2", ("time_embedding.linear_2",)),
    Link("label_emb.0.0", ("add_embedding.linear_1",)),
    Link("label_emb.0.2", ("add_embedding.linear_2",)),
    Link("input_blocks.0.0", ("conv_in",)),
    Link("out.0", ("conv_norm_out",)),
    Link("out.2", ("conv_out",)),
)


def structure(keys: Collection[str]) -> Structure:
    """Levels, ResNets a level on the way down, and transformer blocks of an attention at each level."""
    if any(key.startswith("down_blocks.") for key in keys):
        levels, layers = count(keys, "down_blocks."), count(keys, "down_blocks.0.resnets.")
        first = [f"down_blocks.{level}.attentions.0" for level in range(levels)]
    else:
        downsamplers = sorted(
            int(key.split(".")[1])
            for key in keys
            if key.startswith("input_blocks.") and ".0.op.weight" in key
        )
        levels = len(downsamplers) + 1
        layers = (downsamplers[0] if downsamplers else count(keys, "input_blocks.")) - 1
        first = [f"input_blocks.{1 + level * (layers + 1)}.1" for level in range(levels)]
    depths = {
        f"depth_{level}": count(keys, f"{name}.transformer_blocks.") for level, name in enumerate(first)
    }
    return {"levels": levels, "layers": layers, **depths}


def links(counts: Structure) -> list[Link]:
    """All modules with weights."""
    return [*_OUTSIDE, *_down(counts), *_middle(counts), *_up(counts)]


def _down(counts: Structure) -> list[Link]:
    layers, step = counts["layers"], counts["layers"] + 1
    found: list[Link] = []
    for level in range(counts["levels"]):
        for layer in range(layers):
            old, new = f"input_blocks.{1 + level * step + layer}", f"down_blocks.{level}"
            found += _resnet(f"{old}.0", f"{new}.resnets.{layer}")
            found += _attention(f"{old}.1", f"{new}.attentions.{layer}", counts[f"depth_{level}"])
        found.append(
            Link(f"input_blocks.{(level + 1) * step}.0.op", (f"down_blocks.{level}.downsamplers.0.conv",))
        )
    return found


def _middle(counts: Structure) -> list[Link]:
    depth = counts[f"depth_{counts['levels'] - 1}"]
    return [
        *_resnet("middle_block.0", "mid_block.resnets.0"),
        *_attention("middle_block.1", "mid_block.attentions.0", depth),
        *_resnet("middle_block.2", "mid_block.resnets.1"),
    ]


def _up(counts: Structure) -> list[Link]:
    step = counts["layers"] + 1
    found: list[Link] = []
    for block in range(counts["levels"]):
        depth = counts[f"depth_{counts['levels'] - 1 - block}"]
        for layer in range(step):
            old, new = f"output_blocks.{block * step + layer}", f"up_blocks.{block}"
            found += _resnet(f"{old}.0", f"{new}.resnets.{layer}")
            found += _attention(f"{old}.1", f"{new}.attentions.{layer}", depth)
        last = f"output_blocks.{block * step + step - 1}.{2 if depth else 1}"
        found.append(Link(f"{last}.conv", (f"up_blocks.{block}.upsamplers.0.conv",)))
    return found


def _resnet(old: str, new: str) -> list[Link]:
    return [Link(f"{old}.{ours}", (f"{new}.{theirs}",)) for ours, theirs in _RESNET.items()]


def _attention(old: str, new: str, depth: int) -> list[Link]:
    if not depth:
        return []
    inside = [f"transformer_blocks.{index}.{layer}" for index in range(depth) for layer in _TRANSFORMER]
    return [Link(f"{old}.{name}", (f"{new}.{name}",)) for name in ("norm", "proj_in", "proj_out", *inside)]


_HEAD = 64
_REFINER_VECTOR = 2560
_VARIANTS = {4: "base", 9: "inpainting", 8: "instruct-pix2pix"}
"""By input channels."""


def configure(facts: dict[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The UNet's configuration, with sizes from the shapes of its tensors.

    Raises:
        ModelError: its widths are not made of heads of 64, so that their number is unknown.
    """
    counts = structure(shapes)
    widths = [shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(counts["levels"])]
    depths = [counts[f"depth_{level}"] for level in range(counts["levels"])]
    if any(width % _HEAD for width in widths):
        raise ModelError(
            "the number of heads of this UNet cannot be told from its weights",
            found=f"widths of {widths}",
            wanted=f"multiples of {_HEAD}",
            fix="put its config.json beside the tokenizers: <model.tokenizers>/unet/config.json",
        )
    crossing = next((shape for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")), (0, 0))
    return facts | {
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": counts["layers"],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
        "attention_head_dim": [width // _HEAD for width in widths],
        "cross_attention_dim": crossing[1],
        "projection_class_embeddings_input_dim": shapes["add_embedding.linear_1.weight"][1],
    }


def variant(config: Mapping[str, Any]) -> str:
    """Base, refiner, or a model that takes more than latents."""
    if config["projection_class_embeddings_input_dim"] == _REFINER_VECTOR:
        return "refiner"
    return _VARIANTS.get(config["in_channels"], f"unknown, with {config['in_channels']} input channels")


NAMES = Names(structure, links, mark="input_blocks.0.0.weight")


def lora_structure(widths: Mapping[str, int]) -> Structure:
    """The published structure: names in a LoRA file are among its names, whatever the file leaves out."""
    return {"levels": 3, "layers": 2, "depth_0": 0, "depth_1": 2, "depth_2": 10}


def lora_metadata(counts: Structure) -> dict[str, str]:
    """What programs recognise an SDXL LoRA by."""
    return {
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "ss_network_module": "networks.lora",
    }


LORA = LoraNames(
    default="kohya",
    structure=lora_structure,
    metadata=lora_metadata,
    # ComfyUI knows SDXL's modules under diffusers' names only where those are written kohya's way.
    readers={"kohya": ("comfyui", "diffusers"), "diffusers": ("diffusers",)},
    comfy_prefixes=("lora_unet_", "lycoris_"),
    # diffusers' reader of SDXL's kohya files drops alphas of attentions other than the commonest one.
    uniform_alpha=True,
    text_encoders={"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    convolutions=(
        r".*\.resnets\.\d+\.(conv1|conv2|conv_shortcut)",
        r".*\.(downsamplers|upsamplers)\.\d+\.conv",
    ),
)

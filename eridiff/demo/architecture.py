"""Tiny bases of every family: the true classes and structure, in a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from eridiff.demo.encoders import build_clip, build_t5
from eridiff.demo.sizes import TINY, BaseSize
from eridiff.demo.tokenizers import EOS, write_clip_tokenizer, write_t5_tokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, ModelMixin

SIDE_PX = 128
"""Side of the demo's images; pipelines default to it."""

_STRIDE = 8
_CLIP_G_PAD = "!"


@dataclass(frozen=True)
class Layout:
    """What a family's diffusers folder holds besides the denoiser."""

    pipeline: str
    text_encoders: tuple[str, ...]
    """`CLIP-L`, `CLIP-G` or `T5`, in the order of the folders text_encoder, text_encoder_2, ..."""
    projected_clip_l: bool
    denoiser: str
    """Name of the denoiser's folder."""
    scheduler: Mapping[str, Any]
    extra: Mapping[str, Any]
    """Further lines of model_index.json."""


_NO_IMAGE_ENCODER = {"feature_extractor": [None, None], "image_encoder": [None, None]}

LAYOUTS: Mapping[str, Layout] = {
    "sdxl": Layout(
        pipeline="StableDiffusionXLPipeline",
        text_encoders=("CLIP-L", "CLIP-G"),
        projected_clip_l=False,
        denoiser="unet",
        scheduler={
            "_class_name": "EulerDiscreteScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "interpolation_type": "linear",
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "steps_offset": 1,
            "timestep_spacing": "leading",
            "trained_betas": None,
            "use_karras_sigmas": False,
        },
        extra={"force_zeros_for_empty_prompt": True, **_NO_IMAGE_ENCODER},
    ),
    "sd35": Layout(
        pipeline="StableDiffusion3Pipeline",
        text_encoders=("CLIP-L", "CLIP-G", "T5"),
        projected_clip_l=True,
        denoiser="transformer",
        scheduler={
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": 3.0,
        },
        extra=_NO_IMAGE_ENCODER,
    ),
    "flux": Layout(
        pipeline="FluxPipeline",
        text_encoders=("CLIP-L", "T5"),
        projected_clip_l=False,
        denoiser="transformer",
        scheduler={
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "base_image_seq_len": 256,
            "base_shift": 0.5,
            "max_image_seq_len": 4096,
            "max_shift": 1.15,
            "num_train_timesteps": 1000,
            "shift": 3.0,
            "use_dynamic_shifting": True,
        },
        extra=_NO_IMAGE_ENCODER,
    ),
}


def save_random_base(family: str, folder: Path, seed: int = 0, size: BaseSize = TINY) -> None:
    """Write a whole diffusers folder with random float32 weights, which the family's pipeline loads.

    Args:
        family: `sdxl`, `sd35` or `flux`.
        folder: made if absent.
        seed: decides every weight; global random state is left as it was.
        size: widths; `TINY` by default.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae, denoiser = build_vae(family, size), build_denoiser(family, size)
        _wake_zero_layers(denoiser)
        save_frozen_parts(family, folder, seed=seed, size=size)
    vae.save_pretrained(folder / "vae")
    denoiser.save_pretrained(folder / LAYOUTS[family].denoiser)


def save_frozen_parts(
    family: str, folder: Path, *, seed: int, size: BaseSize, dtype: torch.dtype = torch.float32
) -> None:
    """Write all that is never trained: tokenizers, text encoders, the scheduler's config and the index."""
    layout = LAYOUTS[family]
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": layout.pipeline, **layout.extra}
    index["scheduler"] = ["diffusers", layout.scheduler["_class_name"]]
    index["vae"] = ["diffusers", "AutoencoderKL"]
    index[layout.denoiser] = ["diffusers", type(build_denoiser_on_meta(family, size)).__name__]
    for number, kind in enumerate(layout.text_encoders, start=1):
        suffix = "" if number == 1 else f"_{number}"
        generator = torch.Generator().manual_seed(1000 * seed + number)
        encoder = _save_text_encoder(kind, folder, suffix, layout, size, generator, dtype)
        index[f"text_encoder{suffix}"] = ["transformers", encoder]
        index[f"tokenizer{suffix}"] = ["transformers", "T5TokenizerFast" if kind == "T5" else "CLIPTokenizer"]
    _write_json(folder / "scheduler" / "scheduler_config.json", layout.scheduler)
    _write_json(folder / "model_index.json", index)


def build_vae(family: str, size: BaseSize) -> AutoencoderKL:
    """A freshly initialised autoencoder: channels, scale, shift and quant convs as the family's own."""
    from diffusers import AutoencoderKL

    published: Mapping[str, Mapping[str, Any]] = {
        "sdxl": {"latent_channels": 4, "scaling_factor": 0.13025, "shift_factor": None},
        "sd35": {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        "flux": {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
    }
    blocks = size.vae.blocks
    levels: Mapping[str, Any] = {  # apart, since diffusers annotates them as tuples of one
        "block_out_channels": blocks,
        "down_block_types": ("DownEncoderBlock2D",) * len(blocks),
        "up_block_types": ("UpDecoderBlock2D",) * len(blocks),
    }
    return AutoencoderKL(
        **published[family],
        **levels,
        layers_per_block=size.vae.layers,
        norm_num_groups=size.vae.norm_groups,
        sample_size=SIDE_PX,
        force_upcast=True,
        use_quant_conv=family == "sdxl",
        use_post_quant_conv=family == "sdxl",
        mid_block_add_attention=True,
    )


def build_denoiser(family: str, size: BaseSize) -> ModelMixin:
    """A freshly initialised denoiser of the family, in float32."""
    builders: Mapping[str, Callable[[BaseSize], ModelMixin]] = {
        "sdxl": _build_unet,
        "sd35": _build_sd3,
        "flux": _build_flux,
    }
    return builders[family](size)


def build_denoiser_on_meta(family: str, size: BaseSize) -> ModelMixin:
    """The denoiser's structure without weights."""
    with torch.device("meta"):
        return build_denoiser(family, size)


def _build_unet(size: BaseSize) -> ModelMixin:
    from diffusers import UNet2DConditionModel

    unet = size.unet
    levels: Mapping[str, Any] = {  # apart, since diffusers annotates them as tuples of one
        "transformer_layers_per_block": unet.transformer_layers,
        "attention_head_dim": tuple(max(1, width // unet.head_width) for width in unet.blocks),
    }
    return UNet2DConditionModel(
        **levels,
        sample_size=SIDE_PX // _STRIDE,
        in_channels=4,
        out_channels=4,
        block_out_channels=unet.blocks,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        norm_num_groups=unet.norm_groups,
        cross_attention_dim=size.clip_l.width + size.clip_g.width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=unet.number_features,
        projection_class_embeddings_input_dim=size.clip_g.projection + 6 * unet.number_features,
    )


def _build_sd3(size: BaseSize) -> ModelMixin:
    from diffusers import SD3Transformer2DModel

    sd3 = size.sd3
    return SD3Transformer2DModel(
        sample_size=SIDE_PX // _STRIDE,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=sd3.layers,
        attention_head_dim=sd3.head_width,
        num_attention_heads=sd3.heads,
        joint_attention_dim=size.t5.width,
        caption_projection_dim=sd3.heads * sd3.head_width,
        pooled_projection_dim=size.clip_l.projection + size.clip_g.projection,
        pos_embed_max_size=sd3.max_side,
        dual_attention_layers=sd3.dual_layers,
        qk_norm="rms_norm",
    )


def _build_flux(size: BaseSize) -> ModelMixin:
    from diffusers import FluxTransformer2DModel

    flux = size.flux
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=flux.double_layers,
        num_single_layers=flux.single_layers,
        attention_head_dim=sum(flux.axes),
        num_attention_heads=flux.heads,
        joint_attention_dim=size.t5.width,
        pooled_projection_dim=size.clip_l.width,
        guidance_embeds=True,
        axes_dims_rope=flux.axes,
    )


def _wake_zero_layers(denoiser: nn.Module) -> None:
    """Give weights that start at zero small random values, so that every part of a random base counts."""
    with torch.no_grad():
        for weight in denoiser.parameters():
            if not weight.any():
                weight.normal_(std=0.02)


def _save_text_encoder(
    kind: str,
    folder: Path,
    suffix: str,
    layout: Layout,
    size: BaseSize,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> str:
    """Write one text encoder and its tokenizer; returns the encoder's class name."""
    tokenizer = folder / f"tokenizer{suffix}"
    if kind == "T5":
        encoder: Any = build_t5(size.t5, write_t5_tokenizer(tokenizer), generator=generator)
    elif kind == "CLIP-L":
        encoder = build_clip(
            size.clip_l,
            write_clip_tokenizer(tokenizer, pad=EOS),
            activation="quick_gelu",
            projected=layout.projected_clip_l,
            generator=generator,
        )
    else:
        encoder = build_clip(
            size.clip_g,
            write_clip_tokenizer(tokenizer, pad=_CLIP_G_PAD),
            activation="gelu",
            projected=True,
            generator=generator,
        )
    encoder.to(dtype).save_pretrained(folder / f"text_encoder{suffix}")
    return type(encoder).__name__


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

"""The layouts of the families' bases."""

from __future__ import annotations

from eridiff.families.checkpoints import clip, flux, sd3, sdxl, t5, vae
from eridiff.families.checkpoints.layout import CheckpointLayout, ModelSpec, TokenizerSpec

_CLIP = TokenizerSpec("clip", max_length=77, pad_token="<|endoftext|>")
_CLIP_G = TokenizerSpec("clip", max_length=77, pad_token="!")
_T5 = TokenizerSpec("t5", max_length=512, pad_token="<pad>")

_VAE_MARKS = (vae.NAMES.mark, "decoder.mid_block.resnets.0.conv1.weight")
_CLIP_MARKS = ("text_model.embeddings.position_embedding.weight", "embeddings.position_embedding.weight")
_CLIP_G_MARKS = (*_CLIP_MARKS, clip.OPEN_CLIP.mark)
_T5_MARKS = ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",)

_BARE, _PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
_CLIP_L = ModelSpec("clip_l", _BARE, None, _CLIP_MARKS, "clip_l", clip.configure, (_PROJECTED, "CLIPModel"))
_CLIP_L_PROJECTED = ModelSpec(
    "clip_l", _PROJECTED, None, _CLIP_MARKS, "clip_l", clip.configure, (_BARE, "CLIPModel")
)
_CLIP_G_MODEL = ModelSpec(
    "clip_g", _PROJECTED, clip.OPEN_CLIP, _CLIP_G_MARKS, "clip_g", clip.configure, ("CLIPModel",)
)
_T5_MODEL = ModelSpec(
    "t5xxl", "T5EncoderModel", None, _T5_MARKS, "t5xxl", t5.configure, ("T5ForConditionalGeneration",)
)


_UNET_BLOCKS = r"(?:(?:down|up)_blocks\.\d+|mid_block)\.(?:attentions\.\d+\.transformer_blocks|resnets)\.\d+"
_SD3_BLOCKS = r"transformer_blocks\.\d+"
_FLUX_BLOCKS = r"(?:single_)?transformer_blocks\.\d+"


def _vae(facts: str) -> ModelSpec:
    return ModelSpec("vae", "AutoencoderKL", vae.NAMES, _VAE_MARKS, facts, vae.configure)


SDXL = CheckpointLayout(
    family="sdxl",
    pipelines=(
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    ),
    models={
        "unet": ModelSpec(
            "transformer",
            "UNet2DConditionModel",
            sdxl.NAMES,
            ("label_emb.0.0.weight", "add_embedding.linear_1.weight"),
            "sdxl_unet",
            sdxl.configure,
            blocks=_UNET_BLOCKS,
        ),
        "vae": _vae("sdxl_vae"),
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_G_MODEL,
    },
    tokenizers={"tokenizer": _CLIP, "tokenizer_2": _CLIP_G},
    scheduler="sdxl_scheduler",
    lora=sdxl.LORA,
    variant=sdxl.variant,
    trained=("base",),
)

SD35 = CheckpointLayout(
    family="sd35",
    pipelines=("StableDiffusion3Pipeline",),
    models={
        "transformer": ModelSpec(
            "transformer",
            "SD3Transformer2DModel",
            sd3.NAMES,
            (sd3.NAMES.mark, "pos_embed.proj.weight"),
            "sd35_transformer",
            sd3.configure,
            blocks=_SD3_BLOCKS,
        ),
        "vae": _vae("sd35_vae"),
        "text_encoder": _CLIP_L_PROJECTED,
        "text_encoder_2": _CLIP_G_MODEL,
        "text_encoder_3": _T5_MODEL,
    },
    tokenizers={"tokenizer": _CLIP, "tokenizer_2": _CLIP_G, "tokenizer_3": _T5},
    scheduler="sd35_scheduler",
    lora=sd3.LORA,
    variant=sd3.variant,
    trained=("3.5-medium", "3.5-large"),
)

FLUX = CheckpointLayout(
    family="flux",
    pipelines=("FluxPipeline",),
    models={
        "transformer": ModelSpec(
            "transformer",
            "FluxTransformer2DModel",
            flux.NAMES,
            (flux.NAMES.mark, "single_transformer_blocks.0.attn.to_q.weight"),
            "flux_transformer",
            flux.configure,
            blocks=_FLUX_BLOCKS,
        ),
        "vae": _vae("flux_vae"),
        "text_encoder": _CLIP_L,
        "text_encoder_2": _T5_MODEL,
    },
    tokenizers={"tokenizer": _CLIP, "tokenizer_2": _T5},
    scheduler="flux_scheduler",
    lora=flux.LORA,
    variant=flux.variant,
    trained=("dev", "schnell"),
)

LAYOUTS = (SDXL, SD35, FLUX)
"""All that is recognised."""

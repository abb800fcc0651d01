"""The layouts of the families' bases."""

from __future__ import annotations

from eridiff.families.checkpoints import clip, flux, sd3, sdxl, t5, vae
from eridiff.families.checkpoints.layout import CheckpointLayout, ModelSpec, TokenizerSpec

_CLIP = TokenizerSpec("clip", max_length=77, pad_token="<|endoftext|>")
_CLIP_G = TokenizerSpec("clip", max_length=77, pad_token="!")
_T5 = TokenizerSpec("t5", max_length=512, pad_token="<pad>")

_BARE, _PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
_CLIP_L_MODEL = ModelSpec("clip_l", _BARE, None, "clip_l", clip.configure, (_PROJECTED, "CLIPModel"))
_CLIP_L_PROJECTED = ModelSpec("clip_l", _PROJECTED, None, "clip_l", clip.configure, (_BARE, "CLIPModel"))
_CLIP_G_MODEL = ModelSpec("clip_g", _PROJECTED, clip.OPEN_CLIP, "clip_g", clip.configure, ("CLIPModel",))
_T5_MODEL = ModelSpec("t5xxl", "T5EncoderModel", None, "t5xxl", t5.configure, ("T5ForConditionalGeneration",))

SDXL = CheckpointLayout(
    family="sdxl",
    pipelines=(
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    ),
    models={
        "unet": ModelSpec("denoiser", "UNet2DConditionModel", sdxl.NAMES, "sdxl_unet", sdxl.configure),
        "vae": ModelSpec("vae", "AutoencoderKL", vae.NAMES, "sdxl_vae", vae.configure),
        "text_encoder": _CLIP_L_MODEL,
        "text_encoder_2": _CLIP_G_MODEL,
    },
    tokenizers={"tokenizer": _CLIP, "tokenizer_2": _CLIP_G},
    scheduler="sdxl_scheduler",
    lora=sdxl.LORA,
)

SD35 = CheckpointLayout(
    family="sd35",
    pipelines=("StableDiffusion3Pipeline",),
    models={
        "transformer": ModelSpec(
            "denoiser", "SD3Transformer2DModel", sd3.NAMES, "sd35_transformer", sd3.configure
        ),
        "vae": ModelSpec("vae", "AutoencoderKL", vae.NAMES, "sd35_vae", vae.configure),
        "text_encoder": _CLIP_L_PROJECTED,
        "text_encoder_2": _CLIP_G_MODEL,
        "text_encoder_3": _T5_MODEL,
    },
    tokenizers={"tokenizer": _CLIP, "tokenizer_2": _CLIP_G, "tokenizer_3": _T5},
    scheduler="sd35_scheduler",
    lora=sd3.LORA,
)

FLUX = CheckpointLayout(
    family="flux",
    pipelines=("FluxPipeline",),
    models={
        "transformer": ModelSpec(
            "denoiser", "FluxTransformer2DModel", flux.NAMES, "flux_transformer", flux.configure
        ),
        "vae": ModelSpec("vae", "AutoencoderKL", vae.NAMES, "flux_vae", vae.configure),
        "text_encoder": _CLIP_L_MODEL,
        "text_encoder_2": _T5_MODEL,
    },
    tokenizers={"tokenizer": _CLIP, "tokenizer_2": _T5},
    scheduler="flux_scheduler",
    lora=flux.LORA,
)

"""Sections of the base model and the images, and of what is made of them before a training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from eridiff.recipe.fields import Positive, Precision, Section, Share


class BaseParts(Section):
    """A base put together from files: each a safetensors file or a diffusers component folder."""

    transformer: Path
    """The denoiser (SDXL's UNet, too), e.g. `flux1-dev.safetensors`."""
    vae: Path | None = None
    """Autoencoder; by default the one inside the denoiser's file."""
    clip_l: Path | None = None
    clip_g: Path | None = None
    t5xxl: Path | None = None


Base = str | BaseParts


class Model(Section):
    """The base model that the LoRA is for."""

    family: str
    """`sdxl`, `sd35` or `flux`."""
    base: Base
    """A hub id, a diffusers folder, one original file, parts, or `builtin:demo-sdxl|demo-sd35|demo-flux`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    variant: str | None = None
    """Weights variant of a diffusers repository, e.g. `fp16`."""
    tokenizers: Path | None = None
    """Folder with `clip/` and `t5/` tokenizers, for bases that hold none; for sizes that an original file
    does not tell, also with `unet/config.json`, `vae/config.json`, ..."""
    quantize: Literal["none", "int8", "nf4", "fp8"] = "none"
    """What the frozen denoiser's linear layers are kept in while a LoRA is trained and evaluated. `int8` and
    `nf4` save memory, `fp8` (on Ada, Hopper and newer) also time."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The family's own settings."""


class Dataset(Section):
    """A folder of images with captions beside them."""

    folder_path: Path
    """A folder, a webdataset `.tar`, or `builtin:demo-neon`: 48 images that `ingest` draws by itself."""
    caption_ext: tuple[str, ...] = ("txt", "caption")
    """Endings of caption files, in order of preference."""
    default_caption: str | None = None
    """Caption of images without one; without it they are quarantined."""
    caption_lines: bool = False
    """Take each non-empty line of a caption file as one of several captions."""
    trigger_word: str | None = None
    """Overrides the recipe's `trigger_word` for this dataset; an empty string means none."""
    num_repeats: Positive = 1
    """How often an epoch shows each image."""
    resolution: Annotated[int, Field(ge=64)] = 1024
    """Images are scaled to about `resolution`² px, in a bucket of their aspect."""
    flip_x: bool = False
    """Also train on mirrored images."""


class Ingest(Section):
    """How images become shards and a snapshot."""

    bucket_step: Annotated[int, Field(ge=16, multiple_of=16)] = 64
    """Bucket sides are multiples of this many px."""
    holdout: Share = 0.05
    """Share of images kept out of training for the validation loss, chosen by content."""
    shard_samples: Positive = 256
    """Images in a shard."""
    max_quarantine: Share = 0.1
    """Share of unusable images past which a stage stops."""
    max_side_px: Positive = 20_000
    """Images with a longer side are quarantined."""


class Precompute(Section):
    """How latents and text embeddings are made. Only precisions and tiling change what is stored."""

    latent_batch_size: Positive = 4
    text_batch_size: Positive = 16
    text_dtype: Precision = "bf16"
    """Precision of the encoders and of the stored embeddings."""
    vae_dtype: Precision | None = None
    """Precision of the VAE; by default the family's own, fp32, whose products a GPU rounds to TensorFloat-32.
    `fp16` is faster there, by a third and compiled by two thirds, and makes two to three times the error;
    `bf16` is no faster and makes twenty times the error."""
    tile_above_px: Positive = 1536
    """The VAE works in tiles on images with a longer side."""
    part_samples: Positive = 64
    """Items in a part: what a kill can cost."""
    compile: bool | Literal["auto"] = "auto"
    """Compile T5, and the VAE's encoder for each size of image. `auto` does so on a GPU with Triton where
    many items are missing: 8000 texts, 1500 images of one size."""

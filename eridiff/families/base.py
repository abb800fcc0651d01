"""What a model family is: constants and a few methods with one convention at the seam.

Time is t in [0, 1], float32, 0 = image and 1 = noise, for every family; each converts inside its own
`predict`. Encoders, denoiser and pipeline are three separate loads, so that no stage holds a model it does
not need. Importing a family imports neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch
    from eridiff.diffusion.objectives import Objective
    from eridiff.families.checkpoints.base import Base
    from PIL import Image
    from torch import Tensor


class FamilyOptions(BaseModel):
    """The `model.options` section of a recipe: each family has its own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class LatentSpec:
    """Shape and scale of a family's latents: `z = (x - shift) * scale` for an unscaled posterior draw x."""

    channels: int
    stride: int
    """Pixels a latent cell spans in each direction."""
    multiple_px: int
    """Sides of an image must be multiples of this."""
    scale: float
    shift: float


@dataclass(frozen=True)
class Moments:
    """Posterior of a batch of images, unscaled: mean and log-variance, each `[B, C, h, w]` float32."""

    mean: Tensor
    logvar: Tensor


@dataclass(frozen=True)
class Prompts:
    """Embeddings of a batch of prompts: text `[B, L, D]` and pooled `[B, P]`."""

    text: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Conditioning:
    """All that a denoiser is told about a batch besides the noisy latents and the time.

    Attributes:
        text: `[B, L, D]` prompt embedding.
        pooled: `[B, P]` pooled prompt embedding.
        geometry: `[B, 6]` float32 px: original height, original width, crop top, crop left, target height,
            target width.
    """

    text: Tensor
    pooled: Tensor
    geometry: Tensor


@dataclass(frozen=True)
class Parts:
    """Names of the components of a base (folders of a diffusers repository) that each load needs."""

    vae: tuple[str, ...]
    text: tuple[str, ...]
    denoiser: tuple[str, ...]


@dataclass(frozen=True)
class SampleRequest:
    """One batch of images to sample; `seeds` and the prompts given with it have one entry an image."""

    seeds: tuple[int, ...]
    width_px: int
    height_px: int
    steps: int
    guidance: float


class ModelFamily(Protocol):
    """One family of image models, carrying its validated options."""

    name: str
    options: FamilyOptions
    latent: LatentSpec
    parts: Parts
    targets: Mapping[str, tuple[str, ...]]
    """Preset name to patterns (regular expressions on whole diffusers module names) of adapted layers."""

    def latent_recipe(self) -> dict[str, Any]:
        """What decides a latent besides VAE weights and image: JSON-able, with a version number."""
        ...

    def text_recipe(self) -> dict[str, Any]:
        """What decides an embedding besides encoder weights and caption: JSON-able, with a version number."""
        ...

    @property
    def objective(self) -> Objective:
        """How t is drawn, latents are noised, and the loss is taken."""
        ...

    def load_vae(self, base: Base, *, device: torch.device, dtype: torch.dtype) -> Any:
        """The frozen autoencoder, in evaluation mode."""
        ...

    def encode_images(self, vae: Any, pixels: Tensor) -> Moments:
        """Posterior moments of `pixels [B, 3, H, W]` float32 in [-1, 1]; H, W multiples of `multiple_px`."""
        ...

    def load_text_encoders(self, base: Base, *, device: torch.device, dtype: torch.dtype) -> Any:
        """The frozen text encoders with their tokenizers, in evaluation mode."""
        ...

    def encode_prompts(self, encoders: Any, captions: Sequence[str]) -> Prompts:
        """Embeddings of captions, as the family's own pipeline makes them."""
        ...

    def load_denoiser(self, base: Base, *, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
        """The frozen denoiser, in training mode, without any text encoder or VAE."""
        ...

    def predict(self, denoiser: torch.nn.Module, noisy: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The denoiser's estimate of the objective's target, `[B, C, h, w]`, for `noisy` at `t [B]`."""
        ...

    def load_pipeline(self, base: Base, *, device: torch.device, dtype: torch.dtype) -> Any:
        """Diffusers' own pipeline of the family, without text encoders."""
        ...

    def sample(
        self, pipeline: Any, prompts: Prompts, negatives: Prompts, request: SampleRequest
    ) -> list[Image.Image]:
        """Images sampled from embeddings alone, one for each seed, through the pipeline's own call."""
        ...

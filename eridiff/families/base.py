"""What a model family is: constants and a few methods with one convention at the seam.

Time is t in [0, 1], float32, 0 = image and 1 = noise, for every family; each converts inside its own
`predict`. Encoders, denoiser and pipeline are three separate loads, so that no stage holds a model it does
not need. Importing a family imports neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from eridiff.families.activations import Activations, Workload
from eridiff.families.frozen.keep import PLAIN, Keep, Shape
from eridiff.families.profiles import Profile, ProfileName

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from eridiff.diffusion.objectives import Objective
    from eridiff.families.checkpoints.base import Base
    from eridiff.families.checkpoints.layout import CheckpointLayout
    from eridiff.families.encoders import ClipStates

Precision = Literal["fp32", "bf16", "fp16"]
"""Names of floating-point types, as recipes have them."""


class FamilyOptions(BaseModel):
    """The `model.options` section of a recipe: each family has its own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


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

    def scaled(self, draw: Tensor) -> Tensor:
        """Latents as the denoiser sees them, from a draw of `Moments`."""
        return (draw - self.shift) * self.scale


@dataclass(frozen=True)
class Moments:
    """Posterior of a batch of images, unscaled: mean and log-variance, each `[B, C, h, w]` float32.

    Always in the units of the family's own autoencoder, so that `LatentSpec.scaled` is right for every base
    and training needs no VAE.
    """

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
class TrainableEncoder:
    """A text encoder that may carry a LoRA of its own.

    Attributes:
        name: its folder's name in a diffusers repository.
        idle_layers: layers at its end of which nothing reaches the denoiser: nothing could train them.
    """

    name: str
    idle_layers: int = 0


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

    name: ClassVar[str]
    latent: ClassVar[LatentSpec]
    parts: ClassVar[Parts]
    vae_dtype: ClassVar[Precision]
    """In what precision images are encoded unless the recipe says otherwise."""
    checkpoint: ClassVar[CheckpointLayout]
    """The components of a base: folders, classes, original names."""
    targets: ClassVar[Mapping[str, tuple[str, ...]]]
    """Preset name to patterns (regular expressions on whole diffusers module names) of adapted layers."""
    blocks: ClassVar[tuple[str, ...]]
    """Class names of the blocks that the denoiser repeats: what is compiled, each kind once."""

    trainable_encoders: ClassVar[tuple[TrainableEncoder, ...]]
    """The CLIP encoders that `train.train_text_encoder` adapts; T5 is never trained."""

    @property
    def options(self) -> FamilyOptions:
        """The family's section of the recipe, validated."""
        ...

    @property
    def profiles(self) -> Mapping[ProfileName, Profile]:
        """What fits training into cards of each size."""
        ...

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

    def join_prompts(self, states: Sequence[ClipStates], cached: Prompts) -> Prompts:
        """Embeddings of which the part of the trainable encoders is `states`, one an encoder, in their order.

        Differentiable. The same states as in `encode_prompts` give the same embeddings, to the bit.

        Args:
            states: of B captions.
            cached: what `encode_prompts` gave for the captions when no encoder was trained; only the part of
                the other encoders is looked at.
        """
        ...

    def unconditional(self, empty: Prompts) -> Prompts:
        """What guidance leads away from when there is no negative prompt, given the empty prompt's embedding.

        The base was trained on it: SDXL's is zero, as its pipeline has it; elsewhere it is `empty` itself.
        """
        ...

    def load_denoiser(
        self, base: Base, *, device: torch.device, dtype: torch.dtype, keep: Keep = PLAIN
    ) -> torch.nn.Module:
        """The frozen denoiser, in training mode, without any text encoder or VAE.

        Blocks that `keep` sends away lie in system memory; `training.visiting` brings them when they run.
        """
        ...

    def predict(self, denoiser: torch.nn.Module, noisy: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The denoiser's estimate of the objective's target, `[B, C, h, w]`, for `noisy` at `t [B]`."""
        ...

    def activations(self, shapes: Mapping[str, Shape], work: Workload) -> Activations:
        """What a forward pass of a batch keeps for its backward pass, by blocks.

        Args:
            shapes: name to shape of the denoiser's tensors.
            work: the batch.
        """
        ...

    def load_pipeline(
        self, base: Base, *, device: torch.device, dtype: torch.dtype, keep: Keep = PLAIN
    ) -> Any:
        """Diffusers' own pipeline of the family, without text encoders; its denoiser lies as `keep` says."""
        ...

    def sample(
        self, pipeline: Any, prompts: Prompts, negatives: Prompts, request: SampleRequest
    ) -> list[Image.Image]:
        """Images sampled from embeddings alone, one for each seed, through the pipeline's own call.

        Args:
            pipeline: from `load_pipeline`; its denoiser may carry a LoRA.
            prompts: one row an image.
            negatives: one row an image, the negative prompts' embeddings or `unconditional`; a family that
                guides by its input alone (Flux) does not look at them.
            request: seeds, size, steps and guidance. Each image depends on its own seed and rows only.
        """
        ...

"""Stable Diffusion 3.5, medium and large (Esser et al. 2024): rectified flow, an MMDiT, two CLIPs and T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from eridiff.errors import ModelError
from eridiff.families import autoencoder
from eridiff.families.activations import Activations, Workload, transformer_block
from eridiff.families.base import (
    Conditioning,
    FamilyOptions,
    LatentSpec,
    Parts,
    Precision,
    Prompts,
    SampleRequest,
    TrainableEncoder,
)
from eridiff.families.checkpoints import layouts
from eridiff.families.checkpoints.layout import CheckpointLayout
from eridiff.families.frozen.keep import PLAIN, Keep, Shape, blocks_of
from eridiff.families.profiles import Profile, ProfileName, profile

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from eridiff.diffusion.objectives import Objective
    from eridiff.families.checkpoints.base import Base
    from eridiff.families.encoders import ClipStates, TextEncoder

_ATTENTION = r"transformer_blocks\.\d+\.attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_FEED_FORWARD = r"transformer_blocks\.\d+\.ff(_context)?\.net\.(0\.proj|2)"
_MODULATION = r"transformer_blocks\.\d+\.norm1(_context)?\.linear"

_CLIP_TOKENS = 77
_UNITS, _DUAL_UNITS = 23.3, 33.9
"""Activations that a block keeps for its backward pass."""

_LARGE_PROFILES: Mapping[ProfileName, Profile] = {
    "24gb": profile(),  # 18.3 GB
    "16gb": profile(quantize="int8"),  # 10.3 GB
    "12gb": profile(quantize="int8", offload=0.25),  # 8.6 GB
    "8gb": profile(quantize="int8", offload=0.5, optimizer="adamw8bit"),  # 6.4 GB
}
_MEDIUM_PROFILES: Mapping[ProfileName, Profile] = {
    "24gb": profile(checkpointing="auto"),  # 14.1 GB
    "16gb": profile(),  # 5.6 GB
    "12gb": profile(),
    "8gb": profile(),
}


class Sd35Options(FamilyOptions):
    """`model.options` of Stable Diffusion 3.5."""

    variant: Literal["medium", "large"] | None = None
    """Which one the base must be; by default whichever its weights are."""
    t5_length: Annotated[int, Field(ge=1, le=512)] = 154
    """T5 tokens of a caption. Padding is a live input, so the same length must be used throughout."""
    mask_mode: Literal["reference", "zero"] = "reference"
    """T5 states of padding: as T5 gives them (reference), or zero."""
    timestep_shift: Annotated[float, Field(gt=0)] = 3.0
    """Moves training times towards noise."""
    logit_mean: float = 0.0
    """Mean of the logit of a time before the shift."""
    logit_std: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of the logit of a time before the shift."""
    loss: Literal["plain", "preconditioned"] = "plain"
    """Velocity MSE, or the same times t squared (diffusers, kohya); the log has the plain one always."""


@dataclass(frozen=True)
class Sd35:
    """Stable Diffusion 3.5 with its options."""

    options: Sd35Options

    name: ClassVar[str] = "sd35"
    latent: ClassVar[LatentSpec] = LatentSpec(
        channels=16, stride=8, multiple_px=16, scale=1.5305, shift=0.0609
    )
    parts: ClassVar[Parts] = Parts(
        vae=("vae",),
        text=(
            "text_encoder",
            "text_encoder_2",
            "text_encoder_3",
            "tokenizer",
            "tokenizer_2",
            "tokenizer_3",
        ),
        denoiser=("transformer",),
    )
    checkpoint: ClassVar[CheckpointLayout] = layouts.SD35
    targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "attn": (_ATTENTION,),
        "attn-mlp": (_ATTENTION, _FEED_FORWARD),
        "all": (_ATTENTION, _FEED_FORWARD, _MODULATION),
    }
    blocks: ClassVar[tuple[str, ...]] = ("JointTransformerBlock",)
    vae_dtype: ClassVar[Precision] = "fp32"
    trainable_encoders: ClassVar[tuple[TrainableEncoder, ...]] = (
        TrainableEncoder("text_encoder"),
        TrainableEncoder("text_encoder_2"),
    )
    load_vae = autoencoder.load_vae
    encode_images = autoencoder.encode_images

    @property
    def profiles(self) -> Mapping[ProfileName, Profile]:
        """Those of large, unless the options say that it is medium."""
        return _MEDIUM_PROFILES if self.options.variant == "medium" else _LARGE_PROFILES

    def latent_recipe(self) -> dict[str, Any]:
        """The moments' definition."""
        return {"version": 1, "family": self.name, "what": "posterior mean and logvar"}

    def text_recipe(self) -> dict[str, Any]:
        """The embeddings' definition."""
        return {
            "version": 1,
            "family": self.name,
            "t5_length": self.options.t5_length,
            "mask_mode": self.options.mask_mode,
        }

    @property
    def objective(self) -> Objective:
        """Rectified flow with logit-normal times and a constant shift."""
        from eridiff.diffusion.objectives import FlowMatching
        from eridiff.diffusion.timesteps import ConstantShift

        return FlowMatching(
            shift=ConstantShift(self.options.timestep_shift),
            logit_mean=self.options.logit_mean,
            logit_std=self.options.logit_std,
            preconditioned=self.options.loss == "preconditioned",
        )

    def load_text_encoders(
        self, base: Base, *, device: torch.device, dtype: torch.dtype
    ) -> tuple[TextEncoder, TextEncoder, TextEncoder]:
        """CLIP-L, OpenCLIP-G and T5-XXL."""
        from eridiff.families import encoders

        return (
            encoders.load(base, "", device=device, dtype=dtype),
            encoders.load(base, "_2", device=device, dtype=dtype),
            encoders.load(base, "_3", device=device, dtype=dtype),
        )

    def encode_prompts(
        self, encoders: tuple[TextEncoder, TextEncoder, TextEncoder], captions: Sequence[str]
    ) -> Prompts:
        """CLIP's rows, zero-filled in width, then T5's: `[B, 77 + t5_length, 4096]`; pooled `[B, 2048]`."""
        from eridiff.families.encoders import clip_states, t5_states

        clip_l, clip_g = (clip_states(encoder, captions) for encoder in encoders[:2])
        zero_padding = self.options.mask_mode == "zero"
        t5 = t5_states(encoders[2], captions, self.options.t5_length, zero_padding=zero_padding)
        return _joined(clip_l, clip_g, t5)

    def join_prompts(self, states: Sequence[ClipStates], cached: Prompts) -> Prompts:
        """The states of both CLIPs before T5's rows of what is cached."""
        clip_l, clip_g = states
        t5 = cached.text[:, clip_l.penultimate.shape[1] :]
        return _joined(clip_l, clip_g, t5.to(clip_l.penultimate.dtype))

    def unconditional(self, empty: Prompts) -> Prompts:
        """The empty prompt itself."""
        return empty

    def load_denoiser(
        self, base: Base, *, device: torch.device, dtype: torch.dtype, keep: Keep = PLAIN
    ) -> torch.nn.Module:
        """The MMDiT, frozen.

        Raises:
            ModelError: the base is not of the variant that the options name.
        """
        from eridiff.families.attention.processors import JointProcessor
        from eridiff.families.checkpoints.loading import load_model

        transformer = load_model(base, "transformer", device=device, dtype=dtype, keep=keep)
        variant = "medium" if transformer.config.dual_attention_layers else "large"
        if self.options.variant not in (None, variant):
            raise ModelError(
                "The base is of another variant.",
                where="model.options.variant",
                found=variant,
                wanted=self.options.variant,
                fix="set model.base or model.options.variant",
            )
        transformer.set_attn_processor(JointProcessor())
        return transformer.train()

    def predict(self, denoiser: Any, noisy: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The MMDiT's velocity `[B, 16, h, w]`; time goes in as float32 `1000 t`."""
        from eridiff.diffusion.timesteps import NUM_STEPS

        dtype = denoiser.pos_embed.proj.weight.dtype
        return denoiser(
            hidden_states=noisy.to(dtype),
            timestep=t.float() * NUM_STEPS,
            encoder_hidden_states=cond.text.to(dtype),
            pooled_projections=cond.pooled.to(dtype),
            return_dict=False,
        )[0]

    def activations(self, shapes: Mapping[str, Shape], work: Workload) -> Activations:
        """Blocks with a second attention of the image to itself keep half as much again."""
        tokens = work.height // 2 * (work.width // 2) + _CLIP_TOKENS + self.options.t5_length
        rows, names = work.batch * tokens, blocks_of(shapes, self.checkpoint.blocks)
        dual = {name: f"{name}.attn2.to_q.weight" in shapes for name in names}
        blocks = {
            name: transformer_block(name, shapes, rows=rows, units=_DUAL_UNITS if dual[name] else _UNITS)
            for name in names
        }
        return Activations(blocks, outside=max(block.given for block in blocks.values()))

    def load_pipeline(
        self, base: Base, *, device: torch.device, dtype: torch.dtype, keep: Keep = PLAIN
    ) -> Any:
        """StableDiffusion3Pipeline without encoders."""
        from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

        from eridiff.families import sampling

        present = {
            "vae": self.load_vae(base, device=device, dtype=dtype),
            "transformer": self.load_denoiser(base, device=device, dtype=dtype, keep=keep).eval(),
            "scheduler": sampling.scheduler(base, FlowMatchEulerDiscreteScheduler),
        }
        return sampling.pipeline(StableDiffusion3Pipeline, present, absent=self.parts.text)

    def sample(
        self, pipeline: Any, prompts: Prompts, negatives: Prompts, request: SampleRequest
    ) -> list[Image.Image]:
        """Images by classifier-free guidance."""
        from eridiff.families.sampling import generators, like

        prompts, negatives = like(pipeline.transformer, prompts), like(pipeline.transformer, negatives)
        return pipeline(
            prompt_embeds=prompts.text,
            pooled_prompt_embeds=prompts.pooled,
            negative_prompt_embeds=negatives.text,
            negative_pooled_prompt_embeds=negatives.pooled,
            width=request.width_px,
            height=request.height_px,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=generators(request.seeds),
        ).images


def _joined(clip_l: ClipStates, clip_g: ClipStates, t5: Tensor) -> Prompts:
    """What the MMDiT is told: CLIP's rows, zero-filled to the width of T5's, then those; both pooled."""
    import torch

    clip = torch.cat([clip_l.penultimate, clip_g.penultimate], dim=-1)
    clip = torch.nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
    return Prompts(torch.cat([clip, t5], dim=1), torch.cat([clip_l.pooled, clip_g.pooled], dim=-1))

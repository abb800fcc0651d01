"""Flux.1-dev (Black Forest Labs 2024): rectified flow, distilled guidance, packed latents, CLIP-L and T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

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

_DOUBLE_ATTENTION = r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_SINGLE_ATTENTION = r"single_transformer_blocks\.\d+\.attn\.to_[qkv]"
_DOUBLE_FEED_FORWARD = r"transformer_blocks\.\d+\.ff(_context)?\.net\.(0\.proj|2)"
_SINGLE_FEED_FORWARD = r"single_transformer_blocks\.\d+\.proj_(mlp|out)"
_DOUBLE_MODULATION = r"transformer_blocks\.\d+\.norm1(_context)?\.linear"
_SINGLE_MODULATION = r"single_transformer_blocks\.\d+\.norm\.linear"

_DOUBLE_UNITS, _SINGLE_UNITS = 20.4, 19.3
"""Activations that a block keeps for its backward pass."""

_PROFILES: Mapping[ProfileName, Profile] = {
    "24gb": profile(quantize="int8"),  # 15.4 GB
    "16gb": profile(quantize="int8", offload=0.25),  # 12.9 GB
    "12gb": profile(quantize="int8", offload=0.5),  # 9.9 GB
    "8gb": profile(quantize="int8", offload=0.75, optimizer="adamw8bit"),  # 6.6 GB
}


class FluxOptions(FamilyOptions):
    """`model.options` of Flux."""

    t5_length: Annotated[int, Field(ge=1, le=512)] = 512
    """T5 tokens of a caption. Padding is a live input, so the same length must be used throughout."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Guidance that the model is told while training; 1 asks for the distribution itself."""
    logit_mean: float = 0.0
    """Mean of the logit of a time before the shift."""
    logit_std: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of the logit of a time before the shift."""
    timestep_shift: Literal["resolution"] | Annotated[float, Field(gt=0)] = "resolution"
    """Moves training times towards noise: more for larger images (resolution), or one factor for all."""


@dataclass(frozen=True)
class Flux:
    """Flux.1-dev with its options."""

    options: FluxOptions

    name: ClassVar[str] = "flux"
    latent: ClassVar[LatentSpec] = LatentSpec(
        channels=16, stride=8, multiple_px=16, scale=0.3611, shift=0.1159
    )
    parts: ClassVar[Parts] = Parts(
        vae=("vae",),
        text=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        denoiser=("transformer",),
    )
    checkpoint: ClassVar[CheckpointLayout] = layouts.FLUX
    targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "attn": (_DOUBLE_ATTENTION, _SINGLE_ATTENTION),
        "attn-mlp": (_DOUBLE_ATTENTION, _SINGLE_ATTENTION, _DOUBLE_FEED_FORWARD, _SINGLE_FEED_FORWARD),
        "all": (
            _DOUBLE_ATTENTION,
            _SINGLE_ATTENTION,
            _DOUBLE_FEED_FORWARD,
            _SINGLE_FEED_FORWARD,
            _DOUBLE_MODULATION,
            _SINGLE_MODULATION,
        ),
    }
    blocks: ClassVar[tuple[str, ...]] = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    vae_dtype: ClassVar[Precision] = "fp32"
    trainable_encoders: ClassVar[tuple[TrainableEncoder, ...]] = (TrainableEncoder("text_encoder"),)
    load_vae = autoencoder.load_vae
    encode_images = autoencoder.encode_images

    @property
    def profiles(self) -> Mapping[ProfileName, Profile]:
        """12 billion weights are 12 GB in eight bits."""
        return _PROFILES

    def latent_recipe(self) -> dict[str, Any]:
        """The moments' definition."""
        return {"version": 1, "family": self.name, "what": "posterior mean and logvar"}

    def text_recipe(self) -> dict[str, Any]:
        """The embeddings' definition."""
        return {"version": 1, "family": self.name, "t5_length": self.options.t5_length}

    @property
    def objective(self) -> Objective:
        """Rectified flow with times that lean to noise as images grow."""
        from eridiff.diffusion.objectives import FlowMatching
        from eridiff.diffusion.timesteps import ConstantShift, ResolutionShift

        shift = self.options.timestep_shift
        return FlowMatching(
            shift=ResolutionShift() if shift == "resolution" else ConstantShift(shift),
            logit_mean=self.options.logit_mean,
            logit_std=self.options.logit_std,
        )

    def load_text_encoders(
        self, base: Base, *, device: torch.device, dtype: torch.dtype
    ) -> tuple[TextEncoder, TextEncoder]:
        """CLIP-L and T5-XXL."""
        from eridiff.families import encoders

        return (
            encoders.load(base, "", device=device, dtype=dtype),
            encoders.load(base, "_2", device=device, dtype=dtype),
        )

    def encode_prompts(self, encoders: tuple[TextEncoder, TextEncoder], captions: Sequence[str]) -> Prompts:
        """T5's states `[B, t5_length, 4096]`; pooled is CLIP-L's, not projected `[B, 768]`."""
        from eridiff.families.encoders import clip_states, t5_states

        clip, t5 = encoders
        return Prompts(t5_states(t5, captions, self.options.t5_length), clip_states(clip, captions).pooled)

    def join_prompts(self, states: Sequence[ClipStates], cached: Prompts) -> Prompts:
        """CLIP-L's pooled state beside T5's, which are cached."""
        (clip,) = states
        return Prompts(cached.text, clip.pooled)

    def unconditional(self, empty: Prompts) -> Prompts:
        """The empty prompt itself."""
        return empty

    def load_denoiser(
        self, base: Base, *, device: torch.device, dtype: torch.dtype, keep: Keep = PLAIN
    ) -> torch.nn.Module:
        """The transformer, frozen."""
        from eridiff.families.attention.processors import FluxProcessor
        from eridiff.families.checkpoints.loading import load_model

        transformer = load_model(base, "transformer", device=device, dtype=dtype, keep=keep)
        transformer.set_attn_processor(FluxProcessor())
        return transformer.train()

    def predict(self, denoiser: Any, noisy: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The transformer's velocity `[B, 16, h, w]`; t and guidance reach their embeddings as float32."""
        from eridiff.families import packing

        dtype = denoiser.x_embedder.weight.dtype
        t, guidance = t.float(), self.options.guidance
        with packing.unrounded(denoiser, now=lambda: t, guidance=guidance):
            packed = denoiser(
                hidden_states=packing.pack(noisy).to(dtype),
                timestep=t,
                guidance=t.new_full(t.shape, guidance) if denoiser.config.guidance_embeds else None,
                pooled_projections=cond.pooled.to(dtype),
                encoder_hidden_states=cond.text.to(dtype),
                txt_ids=t.new_zeros(cond.text.shape[1], 3),
                img_ids=packing.image_ids(noisy),
                return_dict=False,
            )[0]
        return packing.unpack(packed, noisy.shape[-2:])

    def activations(self, shapes: Mapping[str, Shape], work: Workload) -> Activations:
        """Both streams are as wide in either kind of block."""
        tokens = work.height // 2 * (work.width // 2) + self.options.t5_length
        rows, names = work.batch * tokens, blocks_of(shapes, self.checkpoint.blocks)
        units = {name: _SINGLE_UNITS if name.startswith("single") else _DOUBLE_UNITS for name in names}
        blocks = {name: transformer_block(name, shapes, rows=rows, units=units[name]) for name in names}
        return Activations(blocks, outside=max(block.given for block in blocks.values()))

    def load_pipeline(
        self, base: Base, *, device: torch.device, dtype: torch.dtype, keep: Keep = PLAIN
    ) -> Any:
        """FluxPipeline without encoders."""
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

        from eridiff.families import sampling

        present = {
            "vae": self.load_vae(base, device=device, dtype=dtype),
            "transformer": self.load_denoiser(base, device=device, dtype=dtype, keep=keep).eval(),
            "scheduler": sampling.scheduler(base, FlowMatchEulerDiscreteScheduler),
        }
        return sampling.pipeline(FluxPipeline, present, absent=self.parts.text)

    def sample(
        self, pipeline: Any, prompts: Prompts, negatives: Prompts, request: SampleRequest
    ) -> list[Image.Image]:
        """Images by distilled guidance (3.5 is usual): the model is told it, and `negatives` play no part."""
        from eridiff.diffusion.timesteps import NUM_STEPS
        from eridiff.families import packing
        from eridiff.families.sampling import generators, like

        prompts = like(pipeline.transformer, prompts)

        def now() -> Tensor:
            return pipeline.current_timestep.float().expand(len(request.seeds)) / NUM_STEPS

        with packing.unrounded(pipeline.transformer, now=now, guidance=request.guidance):
            return pipeline(
                prompt_embeds=prompts.text,
                pooled_prompt_embeds=prompts.pooled,
                width=request.width_px,
                height=request.height_px,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=generators(request.seeds),
            ).images

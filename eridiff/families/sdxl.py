"""Stable Diffusion XL (Podell et al. 2023): a UNet, two CLIPs, size and crop told to the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from eridiff.errors import ModelError
from eridiff.families import autoencoder
from eridiff.families.activations import (
    ITEM_BYTES,
    Activations,
    BlockBytes,
    Workload,
    transformer_block,
)
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

_ATTENTION = r".*\.transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
_FEED_FORWARD = r".*\.transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)"
_PROJECTION = r".*\.attentions\.\d+\.proj_(in|out)"
_TIME = r".*\.resnets\.\d+\.time_emb_proj"

_UNITS, _RESNET_UNITS, _OUTSIDE_UNITS = 28.9, 3.0, 18.4
"""Activations kept for the backward pass: by a transformer block, by a residual block of its input and its
output, and outside of both, of the first convolution's output."""
_DOWN, _UP = re.compile(r"down_blocks\.(\d+)\."), re.compile(r"up_blocks\.(\d+)\.")

_PROFILES: Mapping[ProfileName, Profile] = {
    "24gb": profile(checkpointing="auto"),  # 12.8 GB
    "16gb": profile(),  # 6.5 GB
    "12gb": profile(),
    "8gb": profile(offload=0.25),  # 5.5 GB
}


class SdxlOptions(FamilyOptions):
    """`model.options` of SDXL."""

    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the base predicts; most predict the noise."""
    zero_terminal_snr: bool = False
    """The base's last step is pure noise; needs v_prediction."""
    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Weight the loss by min(SNR, gamma); 5 is usual."""
    debiased: bool = False
    """Weight the loss by 1/sqrt(SNR)."""
    noise_offset: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of a constant added to each channel of the noise; 0.05 is usual."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError("zero_terminal_snr needs prediction_type: v_prediction")
        if self.min_snr_gamma is not None and self.debiased:
            raise ValueError("min_snr_gamma and debiased are two weightings of the loss: choose one")
        return self


@dataclass(frozen=True)
class Sdxl:
    """SDXL with its options."""

    options: SdxlOptions

    name: ClassVar[str] = "sdxl"
    latent: ClassVar[LatentSpec] = LatentSpec(channels=4, stride=8, multiple_px=8, scale=0.13025, shift=0.0)
    parts: ClassVar[Parts] = Parts(
        vae=("vae",),
        text=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        denoiser=("unet",),
    )
    checkpoint: ClassVar[CheckpointLayout] = layouts.SDXL
    targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "attn": (_ATTENTION,),
        "attn-mlp": (_ATTENTION, _FEED_FORWARD, _PROJECTION),
        "all": (_ATTENTION, _FEED_FORWARD, _PROJECTION, _TIME),
    }
    blocks: ClassVar[tuple[str, ...]] = ("BasicTransformerBlock", "ResnetBlock2D")
    vae_dtype: ClassVar[Precision] = "fp32"
    trainable_encoders: ClassVar[tuple[TrainableEncoder, ...]] = (
        TrainableEncoder("text_encoder", idle_layers=1),  # the UNet is told nothing of its last layer
        TrainableEncoder("text_encoder_2"),
    )
    load_vae = autoencoder.load_vae
    encode_images = autoencoder.encode_images

    @property
    def profiles(self) -> Mapping[ProfileName, Profile]:
        """2.6 billion weights are 5.1 GB."""
        return _PROFILES

    def latent_recipe(self) -> dict[str, Any]:
        """The moments' definition."""
        return {"version": 1, "family": self.name, "what": "posterior mean and logvar"}

    def text_recipe(self) -> dict[str, Any]:
        """The embeddings' definition."""
        return {"version": 1, "family": self.name, "states": "penultimate", "mask": None}

    @property
    def objective(self) -> Objective:
        """DDPM's, as the options say."""
        from eridiff.diffusion.objectives import Ddpm

        return Ddpm(
            prediction=self.options.prediction_type,
            zero_terminal_snr=self.options.zero_terminal_snr,
            min_snr_gamma=self.options.min_snr_gamma,
            debiased=self.options.debiased,
            noise_offset=self.options.noise_offset,
        )

    def load_text_encoders(
        self, base: Base, *, device: torch.device, dtype: torch.dtype
    ) -> tuple[TextEncoder, TextEncoder]:
        """CLIP-L and OpenCLIP-G."""
        from eridiff.families import encoders

        return (
            encoders.load(base, "", device=device, dtype=dtype),
            encoders.load(base, "_2", device=device, dtype=dtype),
        )

    def encode_prompts(self, encoders: tuple[TextEncoder, TextEncoder], captions: Sequence[str]) -> Prompts:
        """Both CLIPs side by side `[B, 77, 2048]`; pooled is CLIP-G's, projected `[B, 1280]`."""
        from eridiff.families.encoders import clip_states

        return _joined(*(clip_states(encoder, captions) for encoder in encoders))

    def join_prompts(self, states: Sequence[ClipStates], cached: Prompts) -> Prompts:
        """Both CLIPs side by side: nothing of what is cached is left."""
        return _joined(*states)

    def unconditional(self, empty: Prompts) -> Prompts:
        """Zeros: the base was trained with zeroed embeddings where captions were dropped."""
        import torch

        return Prompts(torch.zeros_like(empty.text), torch.zeros_like(empty.pooled))

    def load_denoiser(
        self, base: Base, *, device: torch.device, dtype: torch.dtype, keep: Keep = PLAIN
    ) -> torch.nn.Module:
        """The UNet, frozen.

        Raises:
            ModelError: the base's own scheduler says that it predicts something else than the options do.
        """
        from eridiff.families.attention.processors import CrossProcessor
        from eridiff.families.checkpoints.loading import load_model
        from eridiff.families.feed_forward.geglu import use_one_pass

        self._refuse_other_prediction(base)
        unet = load_model(base, "unet", device=device, dtype=dtype, keep=keep)
        unet.set_attn_processor(CrossProcessor())
        use_one_pass(unet, device)
        return unet.train()

    def predict(self, denoiser: Any, noisy: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The UNet's noise or v `[B, 4, h, w]`.

        Geometry goes in as float32: bfloat16 would lose whole numbers above 256. The step that the UNet is
        told is the one that the objective noised with.
        """
        from eridiff.diffusion.timesteps import to_step

        dtype = denoiser.conv_in.weight.dtype
        added = {"text_embeds": cond.pooled.to(dtype), "time_ids": cond.geometry.float()}
        return denoiser(
            noisy.to(dtype),
            to_step(t),
            encoder_hidden_states=cond.text.to(dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    def _refuse_other_prediction(self, base: Base) -> None:
        from eridiff.families.checkpoints.tokenizing import scheduler_config

        if "scheduler" not in base.components:
            return
        found = scheduler_config(base).get("prediction_type", "epsilon")
        if found != self.options.prediction_type:
            raise ModelError(
                "The base predicts something else.",
                where="model.options.prediction_type",
                found=self.options.prediction_type,
                wanted=f"{found}, as the scheduler of {base.source} says",
            )

    def activations(self, shapes: Mapping[str, Shape], work: Workload) -> Activations:
        """By level of the UNet: each halves the sides."""
        levels = 1 + max(int(found[1]) for name in shapes if (found := _DOWN.match(name)))
        cells = work.batch * work.height * work.width
        blocks: dict[str, BlockBytes] = {}
        for name in blocks_of(shapes, self.checkpoint.blocks):
            rows = cells // 4 ** _level(name, levels)
            if ".resnets." in name:
                outputs, inputs = shapes[f"{name}.conv1.weight"][:2]
                blocks[name] = BlockBytes(
                    given=rows * inputs * ITEM_BYTES,
                    kept=round(_RESNET_UNITS * rows * (inputs + outputs) * ITEM_BYTES),
                )
            else:
                blocks[name] = transformer_block(name, shapes, rows=rows, units=_UNITS)
        return Activations(
            blocks, outside=round(_OUTSIDE_UNITS * cells * shapes["conv_in.weight"][0] * ITEM_BYTES)
        )

    def load_pipeline(
        self, base: Base, *, device: torch.device, dtype: torch.dtype, keep: Keep = PLAIN
    ) -> Any:
        """StableDiffusionXLPipeline without encoders, its VAE in float32."""
        import torch
        from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

        from eridiff.families import sampling

        changes: dict[str, Any] = {"prediction_type": self.options.prediction_type}
        if self.options.zero_terminal_snr:
            changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        present = {
            "vae": self.load_vae(base, device=device, dtype=torch.float32),
            "unet": self.load_denoiser(base, device=device, dtype=dtype, keep=keep).eval(),
            "scheduler": sampling.scheduler(base, EulerDiscreteScheduler, changes),
            "add_watermarker": False,
        }
        return sampling.pipeline(StableDiffusionXLPipeline, present, absent=self.parts.text)

    def sample(
        self, pipeline: Any, prompts: Prompts, negatives: Prompts, request: SampleRequest
    ) -> list[Image.Image]:
        """Images by classifier-free guidance, told that they are whole and of their own size."""
        from eridiff.families.sampling import generators, like

        prompts, negatives = like(pipeline.unet, prompts), like(pipeline.unet, negatives)
        latents = pipeline(
            prompt_embeds=prompts.text,
            pooled_prompt_embeds=prompts.pooled,
            negative_prompt_embeds=negatives.text,
            negative_pooled_prompt_embeds=negatives.pooled,
            width=request.width_px,
            height=request.height_px,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=generators(request.seeds),
            output_type="latent",
        ).images
        pixels = autoencoder.decode(pipeline.vae, latents)
        return pipeline.image_processor.postprocess(pixels, output_type="pil")


def _joined(clip_l: ClipStates, clip_g: ClipStates) -> Prompts:
    """What the UNet is told: all states of both, and the pooled one of CLIP-G."""
    import torch

    return Prompts(torch.cat([clip_l.penultimate, clip_g.penultimate], dim=-1), clip_g.pooled)


def _level(name: str, levels: int) -> int:
    """How often the sides were halved where a block of the UNet works."""
    if found := _DOWN.match(name):
        return int(found[1])
    found = _UP.match(name)
    return levels - 1 - int(found[1]) if found else levels - 1

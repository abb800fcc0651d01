"""Training of a tiny denoiser on cached latents and text, with the family's own prediction and objective."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from eridiff.demo.drawing import SIDE_PX
from eridiff.demo.stepping import TrainingStep, cosine
from eridiff.demo.vae_training import Pace
from eridiff.diffusion.timesteps import NUM_STEPS
from eridiff.families import packing
from eridiff.families.base import Conditioning, ModelFamily, Prompts

_DROPOUT = 0.1
_PEAK_LR = 1e-3
_GUIDANCE = (1.0, 5.0)
_DISTILLATION_SHARE = 0.35
_REAL_SHARE = 0.25
_TIMES = 16384
_REPORT_S = 20
_COMPILED = (
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
    "JointTransformerBlock",
    "BasicTransformerBlock",
)

log = logging.getLogger(__name__)


@dataclass
class Cache:
    """Latents and embeddings of all scenes on the device; latents are filled in when the VAE is trained.

    Attributes:
        mean: `[N, C, h, w]` float16, scaled as the denoiser sees them.
        deviation: standard deviation of their posterior, the same shape.
        prompts: text `[N, L, D]` and pooled `[N, P]`.
        empties: what stands for "no caption": each `[K, L, D]` and `[K, P]`.
    """

    mean: Tensor
    deviation: Tensor
    prompts: Prompts
    empties: Prompts


@torch.no_grad()
def encode_captions(
    family: ModelFamily, encoders: Any, captions: Sequence[str], *, batch: int = 1024
) -> tuple[Prompts, Prompts]:
    """Embeddings of captions in float16, and of the empty prompt (with what the pipeline uses for none)."""
    parts = [
        family.encode_prompts(encoders, captions[start : start + batch])
        for start in range(0, len(captions), batch)
    ]
    prompts = Prompts(
        torch.cat([part.text.half() for part in parts]), torch.cat([part.pooled.half() for part in parts])
    )
    empty = family.encode_prompts(encoders, [""])
    none = family.unconditional(empty)
    empties = Prompts(
        torch.cat([empty.text, none.text]).half(), torch.cat([empty.pooled, none.pooled]).half()
    )
    return prompts, empties


class DenoiserTrainer:
    """Trains one denoiser.

    A denoiser that is told a guidance (Flux) is first trained as any other, with guidances that mean nothing;
    then it is taught to answer as classifier-free guidance of its former self would.

    Args:
        family: whose prediction and objective are used.
        denoiser: trained in place.
        cache: latents (may be empty still) and embeddings.
        pace: device, batch, speed-ups and deadline.
        seed: of the draws.
    """

    def __init__(
        self, family: ModelFamily, denoiser: nn.Module, cache: Cache, pace: Pace, *, seed: int
    ) -> None:
        self._family, self._denoiser, self._cache, self._pace = family, denoiser, cache, pace
        device, batch = cache.mean.device, pace.batch
        self._generator = torch.Generator(device).manual_seed(seed)
        self._times = _times(family, cache.mean.shape[-2:], seed).to(device)
        self._index = torch.zeros(batch, dtype=torch.long, device=device)
        self._empty = torch.zeros(batch, dtype=torch.long, device=device)
        self._dropped = torch.zeros(batch, dtype=torch.bool, device=device)
        self._real = torch.ones(batch, dtype=torch.bool, device=device)
        self._t = torch.full((batch,), 0.5, device=device)
        self._guidance = torch.ones(batch, device=device)
        self._posterior = torch.zeros(batch, *cache.mean.shape[1:], device=device)
        self._noise = torch.zeros_like(self._posterior)
        sides = [SIDE_PX, SIDE_PX, 0, 0, SIDE_PX, SIDE_PX]
        self._geometry = torch.tensor([sides] * batch, dtype=torch.float32, device=device)
        config = cast("Mapping[str, Any]", denoiser.config)
        self._distilled = bool(config.get("guidance_embeds", False))
        if pace.fast:
            _compile_blocks(denoiser)
        self._step = TrainingStep(denoiser, self._loss, capture=pace.fast)
        if self._distilled:
            self._teacher = _twin(denoiser, fast=pace.fast)
            self._distillation = TrainingStep(denoiser, self._distillation_loss, capture=pace.fast)

    def train(self) -> None:
        """Train until the deadline; the denoiser then holds the averaged weights."""
        start, stop = time.time(), self._pace.deadline
        split = stop - _DISTILLATION_SHARE * (stop - start) if self._distilled else stop
        self._run(self._step, start, split, peak=_PEAK_LR, label="base")
        if self._distilled:
            self._teacher.load_state_dict(self._denoiser.state_dict())
            self._run(self._distillation, time.time(), stop, peak=_PEAK_LR / 2, label="guidance")

    def _run(self, step: TrainingStep, start: float, stop: float, *, peak: float, label: str) -> None:
        step.reset()
        steps, told, total = 0, time.time(), torch.zeros((), device=self._t.device)
        since = 0
        while steps < 2 or time.time() < stop:
            self._draw()
            total += step(cosine((time.time() - start) / max(1e-6, stop - start), peak))
            steps, since = steps + 1, since + 1
            if steps == 2 or (steps % 50 == 0 and time.time() - told > _REPORT_S):
                mean = float(total) / since
                if not np.isfinite(mean):
                    raise FloatingPointError(f"{self._family.name}: the loss became {mean} at step {steps}")
                log.info("%s %s: step %d loss %.4f", self._family.name, label, steps, mean)
                told, since = time.time(), 0
                total.zero_()
        log.info("%s %s: %d steps of %d", self._family.name, label, steps, self._pace.batch)
        step.adopt_average()

    def _draw(self) -> None:
        """New inputs for the next step."""
        batch = len(self._index)
        drawn = {"generator": self._generator, "device": self._t.device}
        self._index.copy_(torch.randint(len(self._cache.mean), (batch,), **drawn))
        self._empty.copy_(torch.randint(2, (batch,), **drawn))
        self._dropped.copy_(torch.rand(batch, **drawn) < _DROPOUT)
        self._real.copy_(torch.rand(batch, **drawn) < _REAL_SHARE)
        self._t.copy_(self._times[torch.randint(len(self._times), (batch,), **drawn)])
        low, high = _GUIDANCE
        self._guidance.copy_(low + (high - low) * torch.rand(batch, **drawn))
        self._posterior.normal_(generator=self._generator)
        self._noise.normal_(generator=self._generator)

    def _clean(self) -> Tensor:
        mean, deviation = self._cache.mean[self._index].float(), self._cache.deviation[self._index].float()
        return mean + deviation * self._posterior

    def _conditioning(self, dropped: Tensor) -> Conditioning:
        prompts, empties = self._cache.prompts, self._cache.empties
        text = torch.where(dropped[:, None, None], empties.text[self._empty], prompts.text[self._index])
        pooled = torch.where(dropped[:, None], empties.pooled[self._empty], prompts.pooled[self._index])
        return Conditioning(text.float(), pooled.float(), self._geometry)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self._t.device.type, torch.bfloat16, enabled=self._t.is_cuda, cache_enabled=False
        )

    def _predict(self, noisy: Tensor, cond: Conditioning, guidance: Tensor) -> Tensor:
        with self._autocast():
            if self._distilled:
                return guided_velocity(self._denoiser, noisy, self._t, cond, guidance)
            return self._family.predict(self._denoiser, noisy, self._t, cond)

    def _loss(self) -> Tensor:
        objective, clean = self._family.objective, self._clean()
        noisy = objective.noised(clean, self._noise, self._t)
        prediction = self._predict(noisy, self._conditioning(self._dropped), self._guidance)
        return objective.losses(prediction.float(), clean, self._noise, self._t).weighted.mean()

    def _distillation_loss(self) -> Tensor:
        """Some samples keep the true target, told guidance 1; the others follow the guided teacher."""
        clean = self._clean()
        noisy = self._family.objective.noised(clean, self._noise, self._t)
        cond = self._conditioning(torch.zeros_like(self._dropped))
        guidance = torch.where(self._real, torch.ones_like(self._guidance), self._guidance)
        with torch.no_grad(), self._autocast():
            none = self._conditioning(torch.ones_like(self._dropped))
            told = guided_velocity(self._teacher, noisy, self._t, cond, guidance).float()
            untold = guided_velocity(self._teacher, noisy, self._t, none, guidance).float()
        wanted = untold + guidance.view(-1, 1, 1, 1) * (told - untold)
        real = self._real.view(-1, 1, 1, 1)
        wanted = torch.where(real, self._family.objective.target(clean, self._noise, self._t), wanted)
        return (self._predict(noisy, cond, guidance).float() - wanted).square().mean()


def guided_velocity(denoiser: Any, noisy: Tensor, t: Tensor, cond: Conditioning, guidance: Tensor) -> Tensor:
    """Flux's velocity `[B, 16, h, w]` when told `guidance [B]`, one number a sample.

    Time and guidance reach their embeddings in float32, as in the family's `predict`.
    """
    exact = (t * NUM_STEPS, guidance * NUM_STEPS)
    embed = denoiser.time_text_embed
    hook = embed.register_forward_pre_hook(lambda module, inputs: (*exact, inputs[-1]))
    packed = denoiser(
        hidden_states=packing.pack(noisy),
        timestep=t,
        guidance=guidance,
        pooled_projections=cond.pooled,
        encoder_hidden_states=cond.text,
        txt_ids=t.new_zeros(cond.text.shape[1], 3),
        img_ids=packing.image_ids(noisy),
        return_dict=False,
    )[0]
    hook.remove()
    return packing.unpack(packed, noisy.shape[-2:])


def attention_error(trainer: DenoiserTrainer) -> float:
    """Relative difference of the gradients under the chosen attention kernels and under plain maths."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def gradient() -> Tensor:
        trainer._denoiser.zero_grad(set_to_none=True)
        with torch.compiler.set_stance("force_eager"):
            trainer._loss().backward()
        return torch.cat([w.grad.flatten() for w in trainer._denoiser.parameters() if w.grad is not None])

    chosen = gradient()
    with sdpa_kernel([SDPBackend.MATH]):
        exact = gradient()
    trainer._denoiser.zero_grad(set_to_none=True)
    return float((chosen - exact).norm() / exact.norm())


def _times(family: ModelFamily, size: Sequence[int], seed: int) -> Tensor:
    """Many times as the family's objective draws them."""
    generator = torch.Generator().manual_seed(seed)
    latent_size = (size[0], size[1])
    drawn = [family.objective.draw_time(generator, latent_size=latent_size) for _ in range(_TIMES)]
    return torch.stack(drawn)


def _compile_blocks(denoiser: nn.Module) -> None:
    """Compile the repeated blocks; the code around them is small and keeps its hooks."""
    torch._dynamo.config.recompile_limit = 64
    for module in denoiser.modules():
        if type(module).__name__ in _COMPILED:
            module.compile(dynamic=False)


def _twin(denoiser: Any, *, fast: bool) -> nn.Module:
    """A frozen copy with the same weights."""
    twin = type(denoiser).from_config(denoiser.config)
    twin.load_state_dict(denoiser.state_dict())
    twin.to(denoiser.device).requires_grad_(False).train()
    if fast:
        _compile_blocks(twin)
    return twin

"""What a denoiser is asked for: how latents are noised, the target, and the loss of each sample.

Shapes: latents, noise and predictions `[B, C, h, w]`, scaled as the model sees them; t `[B]` float32,
0 = image and 1 = noise. Losses are float32, `[B]`: the mean over elements, not yet over samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from eridiff.diffusion import timesteps
from eridiff.diffusion.timesteps import NUM_STEPS, Shift


@dataclass(frozen=True)
class Losses:
    """Loss of each sample of a batch, `[B]` float32.

    Attributes:
        weighted: what is minimised.
        plain: mean squared error against the target, comparable between weightings.
    """

    weighted: Tensor
    plain: Tensor


class Objective(Protocol):
    """One training objective: draws, noising, target and loss that belong together."""

    def draw_time(self, generator: torch.Generator, *, latent_size: tuple[int, int]) -> Tensor:
        """A time for one sample, a float32 scalar; `latent_size` is (height, width) in latent cells."""
        ...

    def draw_noise(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Noise `[C, h, w]` float32 for one sample, on the CPU."""
        ...

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of clean latents."""
        ...

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the denoiser should say about x_t."""
        ...

    def losses(self, prediction: Tensor, clean: Tensor, noise: Tensor, t: Tensor) -> Losses:
        """How far `prediction` is from the target, sample by sample."""
        ...


@dataclass(frozen=True)
class FlowMatching:
    """Rectified flow: x_t = (1 - t) x0 + t noise, target noise - x0 (Liu et al. 2023, Esser et al. 2024).

    Attributes:
        shift: moves drawn times towards noise.
        logit_mean: mean of the logit of a drawn time.
        logit_std: its standard deviation.
        preconditioned: weight the error by t^2, which compares x0 rather than velocity (diffusers, kohya).
        patch: latent cells a token spans in each direction.
    """

    shift: Shift
    logit_mean: float = 0.0
    logit_std: float = 1.0
    preconditioned: bool = False
    patch: int = 2

    def draw_time(self, generator: torch.Generator, *, latent_size: tuple[int, int]) -> Tensor:
        """Logit-normal, then shifted for the number of tokens of `latent_size`."""
        height, width = latent_size
        num_tokens = (height // self.patch) * (width // self.patch)
        drawn = timesteps.logit_normal(generator, mean=self.logit_mean, std=self.logit_std)
        return timesteps.shifted(drawn, self.shift.factor(num_tokens))

    def draw_noise(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Standard normal noise."""
        return torch.randn(shape, generator=generator)

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The straight line from image to noise, at t."""
        t = _column(t)
        return (1 - t) * clean + t * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The line's velocity, the same at every t."""
        return noise - clean

    def losses(self, prediction: Tensor, clean: Tensor, noise: Tensor, t: Tensor) -> Losses:
        """Squared error of the velocity, times t^2 where preconditioned."""
        plain = _mean_square(prediction, self.target(clean, noise, t))
        return Losses(plain * t.float() ** 2 if self.preconditioned else plain, plain)


@dataclass(frozen=True)
class Ddpm:
    """The 1000-step variance-preserving process of Stable Diffusion (Ho et al. 2020), betas scaled-linear.

    Attributes:
        prediction: `epsilon` (the noise) or `v_prediction` (Salimans & Ho 2022).
        zero_terminal_snr: rescale the schedule so that step 999 is pure noise (Lin et al. 2024).
        min_snr_gamma: cap of the signal-to-noise ratio in the weight (Hang et al. 2023); None = weight 1.
        debiased: weight 1/sqrt(SNR) for epsilon (Yu et al. 2024), 1/(SNR + 1) for v.
        noise_offset: standard deviation of a further normal number per channel added to the noise.
    """

    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    zero_terminal_snr: bool = False
    min_snr_gamma: float | None = None
    debiased: bool = False
    noise_offset: float = 0.0

    def draw_time(self, generator: torch.Generator, *, latent_size: tuple[int, int]) -> Tensor:
        """One of the 1000 steps, all equally likely."""
        return timesteps.uniform_step(generator)

    def draw_noise(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Standard normal noise, and the offset of each channel."""
        noise = torch.randn(shape, generator=generator)
        if self.noise_offset == 0:
            return noise
        return noise + self.noise_offset * torch.randn((shape[0], 1, 1), generator=generator)

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """`sqrt(alpha bar) x0 + sqrt(1 - alpha bar) noise`."""
        signal, spread = self._signal_and_spread(t)
        return signal * clean + spread * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noise, or v = `sqrt(alpha bar) noise - sqrt(1 - alpha bar) x0`."""
        if self.prediction == "epsilon":
            return noise
        signal, spread = self._signal_and_spread(t)
        return signal * noise - spread * clean

    def losses(self, prediction: Tensor, clean: Tensor, noise: Tensor, t: Tensor) -> Losses:
        """Squared error against the target, weighted by the signal-to-noise ratio as the options say."""
        plain = _mean_square(prediction, self.target(clean, noise, t))
        return Losses(plain * self.weight(t), plain)

    def weight(self, t: Tensor) -> Tensor:
        """Weight of the loss at each t, `[B]` float32."""
        signal = self._signal(t)
        ratio = signal / (1 - signal)
        if self.min_snr_gamma is not None:
            if self.prediction == "epsilon":
                return (self.min_snr_gamma / ratio).clamp(max=1)
            return ratio.clamp(max=self.min_snr_gamma) / (ratio + 1)
        if self.debiased:
            return ratio.rsqrt() if self.prediction == "epsilon" else 1 / (ratio + 1)
        return torch.ones_like(ratio)

    def _signal(self, t: Tensor) -> Tensor:
        return alphas_cumprod(self.zero_terminal_snr, t.device)[timesteps.to_step(t)]

    def _signal_and_spread(self, t: Tensor) -> tuple[Tensor, Tensor]:
        signal = _column(self._signal(t))
        return signal.sqrt(), (1 - signal).sqrt()


@lru_cache
def alphas_cumprod(zero_terminal_snr: bool, device: torch.device) -> Tensor:
    """Share of an image's variance left after each of the 1000 steps (alpha bar), float32.

    Computed in float32 as diffusers' schedulers do, so that training and sampling agree to the bit.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, NUM_STEPS, dtype=torch.float32) ** 2
    signal = torch.cumprod(1 - betas, dim=0)
    if zero_terminal_snr:
        root = signal.sqrt()
        signal = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return signal.to(device)


def _column(values: Tensor) -> Tensor:
    return values.float().view(-1, 1, 1, 1)


def _mean_square(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)

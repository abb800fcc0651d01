"""Training of a tiny autoencoder, and the fold that gives its latents zero mean and unit variance."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from eridiff.demo.corpus import Corpus
from eridiff.demo.stepping import TrainingStep, cosine

_KL_WEIGHT = 1e-4
_NEON_SHARE = 0.2
_RECOLOURED_SHARE = 0.3
_PEAK_LR = 8e-4
_SETTLING_SHARE = 0.15
_STATISTICS_IMAGES = 4096
_ENCODE_BATCH = 256
_REPORT_S = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How a training runs: device, batch, whether kernels are compiled and graphed, and until when."""

    device: str
    batch: int
    fast: bool
    deadline: float
    """`time.time()` at which training stops."""


class VaeTrainer:
    """Trains one autoencoder on plain scenes, some neon ones, and recoloured ones.

    Args:
        vae: an `AutoencoderKL`, trained in place.
        plain: scenes that the bases will be trained on; the latents' statistics are theirs.
        neon: scenes of the second style.
        pace: device, batch, speed-ups and deadline.
        seed: of the draws.
    """

    def __init__(self, vae: Any, plain: Corpus, neon: Corpus, pace: Pace, *, seed: int) -> None:
        self._vae, self._pace, self._plain_count = vae, pace, plain.count
        device = torch.device(pace.device)
        images = np.concatenate([plain.pixels(), neon.pixels()])
        self._pixels = torch.from_numpy(images).to(device)
        self._generator = torch.Generator(device).manual_seed(seed)
        self._index = torch.zeros(pace.batch, dtype=torch.long, device=device)
        self._permutation = torch.zeros(pace.batch, dtype=torch.long, device=device)
        self._sign = torch.ones(pace.batch, 1, 1, 1, device=device)
        latent = vae.config.latent_channels
        side = images.shape[1] // 8
        self._noise = torch.zeros(pace.batch, latent, side, side, device=device)
        orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
        self._orders = torch.tensor(orders, device=device)
        if pace.fast:
            vae.to(memory_format=torch.channels_last)
            vae.encoder.compile(dynamic=False)
            vae.decoder.compile(dynamic=False)
        self._step = TrainingStep(vae, self._loss, capture=pace.fast)

    def train(self) -> None:
        """Train until the deadline; early on and at the end fold the latents to zero mean, unit variance."""
        start = time.time()
        settled = start + _SETTLING_SHARE * (self._pace.deadline - start)
        self._run(start, settled, first=True)
        self._fold()
        self._run(settled, self._pace.deadline, first=False)
        self._fold()

    @torch.no_grad()
    def latents(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every plain scene's latents, `[N, C, h, w]` float16, on the CPU."""
        means, deviations = [], []
        for start in range(0, self._plain_count, _ENCODE_BATCH):
            stop = min(start + _ENCODE_BATCH, self._plain_count)
            posterior = self._posterior(self._images(torch.arange(start, stop, device=self._pixels.device)))
            means.append(posterior.mean.half().cpu())
            deviations.append(posterior.std.half().cpu())
        return torch.cat(means), torch.cat(deviations)

    @torch.no_grad()
    def reconstructions(self, count: int) -> tuple[Image.Image, float]:
        """A sheet of plain and neon scenes over their reconstructions, and the mean PSNR in dB."""
        last = len(self._pixels)
        index = [*range(count // 2), *range(last - count // 2, last)]
        pixels = self._images(torch.tensor(index, device=self._pixels.device))
        decoded = _eager(self._vae.decode, self._posterior(pixels).mean).sample.clamp(-1, 1)
        error = (decoded - pixels).square().mean(dim=(1, 2, 3)) / 4
        rows = [torch.cat(list(batch), dim=2) for batch in (pixels, decoded)]
        sheet = (torch.cat(rows, dim=1).permute(1, 2, 0) * 127.5 + 127.5).round().byte().cpu().numpy()
        return Image.fromarray(sheet), float((-10 * error.log10()).mean())

    def _run(self, start: float, stop: float, *, first: bool) -> None:
        self._step.reset()
        steps, told = 0, time.time()
        while steps < 2 or time.time() < stop:
            progress = (time.time() - start) / max(1e-6, stop - start)
            rate = _PEAK_LR * min(1.0, 0.05 + 10 * progress) if first else cosine(progress, _PEAK_LR)
            self._draw()
            loss = self._step(rate)
            steps += 1
            if steps == 2 or (steps % 50 == 0 and time.time() - told > _REPORT_S):
                log.info("vae %d: step %d loss %.4f", self._noise.shape[1], steps, _finite(loss))
                told = time.time()
        log.info("vae %d: %d steps", self._noise.shape[1], steps)
        self._step.adopt_average()

    def _draw(self) -> None:
        """New inputs for the next step."""
        drawn = {"generator": self._generator, "device": self._pixels.device}
        batch, total = len(self._index), len(self._pixels)
        plain = torch.randint(self._plain_count, (batch,), **drawn)
        neon = torch.randint(self._plain_count, total, (batch,), **drawn)
        self._index.copy_(torch.where(torch.rand(batch, **drawn) < _NEON_SHARE, neon, plain))
        recoloured = torch.rand(batch, **drawn) < _RECOLOURED_SHARE
        self._permutation.copy_(torch.randint(6, (batch,), **drawn) * recoloured)
        inverted = recoloured & (torch.rand(batch, **drawn) < 0.5)
        self._sign.copy_(1 - 2 * inverted.float().view(-1, 1, 1, 1))
        self._noise.normal_(generator=self._generator)

    def _images(self, index: Tensor) -> Tensor:
        """`[B, 3, 128, 128]` float32 in [-1, 1]."""
        return self._pixels[index].permute(0, 3, 1, 2).float() / 127.5 - 1

    def _loss(self) -> Tensor:
        pixels = self._images(self._index)
        order = self._orders[self._permutation][:, :, None, None].expand_as(pixels)
        pixels = torch.gather(pixels, 1, order) * self._sign
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.is_cuda, cache_enabled=False):
            mean, logvar = _moments(self._vae, pixels)
            mean, logvar = mean.float(), logvar.float().clamp(-30, 20)
            decoded = _decoded(self._vae, mean + torch.exp(0.5 * logvar) * self._noise)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return reconstruction_loss(decoded.float(), pixels) + _KL_WEIGHT * kl

    def _posterior(self, pixels: Tensor) -> Any:
        return _eager(self._vae.encode, pixels).latent_dist

    @torch.no_grad()
    def _fold(self) -> None:
        index = torch.arange(min(_STATISTICS_IMAGES, self._plain_count), device=self._pixels.device)
        parts = [self._posterior(self._images(chunk)) for chunk in index.split(_ENCODE_BATCH)]
        mean, variance = torch.cat([p.mean for p in parts]), torch.cat([p.var for p in parts])
        centre = mean.mean(dim=(0, 2, 3))
        spread = (mean.var(dim=(0, 2, 3)) + variance.mean(dim=(0, 2, 3))).sqrt()
        fold(self._vae, gain=1 / spread, offset=-centre / spread)
        report = (float(centre.abs().max()), float(spread.min()), float(spread.max()))
        log.info("vae %d: folded latents (mean up to %.3f, std %.3f to %.3f)", len(centre), *report)


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Mean absolute error of colours, of opponent colours, and of edges at three scales.

    Args:
        decoded: `[B, 3, H, W]` float32.
        pixels: the same shape, in [-1, 1].
    """
    error = decoded - pixels
    red, green, blue = error.unbind(dim=1)
    loss = error.abs().mean() + 0.5 * ((red - green).abs() + (0.5 * (red + green) - blue).abs()).mean()
    for _ in range(3):
        loss = loss + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        error = functional.avg_pool2d(error, 2)
    return loss + 0.5 * error.abs().mean()


@torch.no_grad()
def fold(vae: Any, *, gain: Tensor, offset: Tensor) -> None:
    """Change the latents x of an autoencoder to `gain * x + offset`, and leave what it reconstructs.

    Where the decoder begins with a padded convolution the padding stands for the latent 0: there the offset
    is exact but for the border.

    Args:
        vae: an `AutoencoderKL`, changed in place.
        gain: `[C]`, positive.
        offset: `[C]`.
    """
    last: nn.Conv2d = vae.quant_conv or vae.encoder.conv_out
    first: nn.Conv2d = vae.post_quant_conv or vae.decoder.conv_in
    channels = len(gain)
    if last.bias is None or first.bias is None:
        raise ValueError("an autoencoder's outer convolutions have biases")
    last.weight[:channels] *= gain.view(-1, 1, 1, 1)
    last.bias[:channels] = last.bias[:channels] * gain + offset
    last.bias[channels:] += 2 * gain.log()
    first.weight /= gain.view(1, -1, 1, 1)
    first.bias -= (first.weight * offset.view(1, -1, 1, 1)).sum(dim=(1, 2, 3))


def fold_to_family(vae: Any, *, scale: float, shift: float) -> None:
    """Change zero-mean, unit-variance latents z to the x with `z = (x - shift) * scale`."""
    ones = torch.ones(vae.config.latent_channels)
    fold(vae, gain=ones / scale, offset=ones * shift)


def save_latents(folder: Path, mean: Tensor, deviation: Tensor) -> None:
    """Write latents as two .npy files."""
    np.save(folder / "mean.npy", mean.numpy())
    np.save(folder / "std.npy", deviation.numpy())


def _moments(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    hidden = vae.encoder(pixels)
    mean, logvar = (hidden if vae.quant_conv is None else vae.quant_conv(hidden)).chunk(2, dim=1)
    return mean, logvar


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    return vae.decoder(latents if vae.post_quant_conv is None else vae.post_quant_conv(latents))


def _eager(function: Any, argument: Tensor) -> Any:
    """Call without the compiled kernels, which are made for training's batch and precision."""
    with torch.compiler.set_stance("force_eager"):
        return function(argument)


def _finite(loss: Tensor) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss became {value}")
    return value

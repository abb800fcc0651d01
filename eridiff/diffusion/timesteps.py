"""Time: how t in [0, 1] is drawn, shifted towards noise, and counted in the 1000 steps of DDPM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

NUM_STEPS = 1000
"""Steps of the discrete process, and the unit in which every family's time embedding counts."""


def shifted(t: Tensor, factor: float) -> Tensor:
    """`s t / (1 + (s - 1) t)`: moves time towards noise for s > 1 (Esser et al. 2024, eq. 23)."""
    return factor * t / (1 + (factor - 1) * t)


class Shift(Protocol):
    """A rule that gives the shift of an image's times."""

    def factor(self, num_tokens: int) -> float:
        """The shift s for an image of `num_tokens` patches."""
        ...


@dataclass(frozen=True)
class ConstantShift:
    """One shift for every size."""

    value: float

    def factor(self, num_tokens: int) -> float:
        """`value`, whatever the size."""
        return self.value


@dataclass(frozen=True)
class ResolutionShift:
    """`e^mu`, mu linear in the number of image tokens: larger images need more noise to be hidden."""

    base_tokens: int = 256
    base_mu: float = 0.5
    max_tokens: int = 4096
    max_mu: float = 1.15

    def factor(self, num_tokens: int) -> float:
        """The shift of an image of `num_tokens`, extrapolated outside [base_tokens, max_tokens]."""
        slope = (self.max_mu - self.base_mu) / (self.max_tokens - self.base_tokens)
        return math.exp(self.base_mu + slope * (num_tokens - self.base_tokens))


def logit_normal(generator: torch.Generator, *, mean: float, std: float) -> Tensor:
    """One time, a float32 scalar in (0, 1): `sigmoid(mean + std * normal)`."""
    return torch.sigmoid(mean + std * torch.randn((), generator=generator))


def uniform_step(generator: torch.Generator) -> Tensor:
    """One time of the discrete process: `from_step` of a step drawn evenly from {0, ..., 999}."""
    return from_step(torch.randint(NUM_STEPS, (), generator=generator))


def from_step(step: Tensor) -> Tensor:
    """Time of a discrete step: step k has been noised k + 1 times, so t = (k + 1) / 1000."""
    return (step.float() + 1) / NUM_STEPS


def to_step(t: Tensor) -> Tensor:
    """The int64 step nearest to t, in {0, ..., 999}; the exact inverse of `from_step`."""
    return (torch.round(t * NUM_STEPS) - 1).clamp(0, NUM_STEPS - 1).long()

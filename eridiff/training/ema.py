"""A moving average of the trained parameters, which is what gets exported when it is on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class MovingAverage:
    """Keeps `average = decay * average + (1 - decay) * value` for each parameter, starting at its value."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self._parameters, self._decay = dict(parameters), decay
        self.averages = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the parameters' present values."""
        values = [value.detach() for value in self._parameters.values()]
        torch._foreach_lerp_(list(self.averages.values()), values, 1.0 - self._decay)

    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Takes up averages that were kept earlier.

        Raises:
            KeyError: one is missing.
        """
        for name, average in self.averages.items():
            average.copy_(averages[name])

"""Gradients of all trained parameters as one flat buffer: one sum over devices, one norm, one clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class GradientBuffer:
    """Flat float32 memory that every parameter's `.grad` is a view of.

    Autograd adds into existing `.grad` tensors in place, so backward passes fill the buffer without a copy.

    Args:
        parameters: name to trained parameter, all on one device.
        num_extra: numbers that travel with the gradients when they are summed over devices.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], num_extra: int) -> None:
        self._parameters = dict(parameters)
        sizes = [parameter.numel() for parameter in self._parameters.values()]
        device = next(iter(self._parameters.values())).device
        self.flat = torch.zeros(sum(sizes) + num_extra, dtype=torch.float32, device=device)
        self.gradients, self.extra = self.flat[: sum(sizes)], self.flat[sum(sizes) :]
        self._views = torch.split(self.gradients, sizes)
        self.zero_()

    def zero_(self) -> None:
        """Sets all gradients and extras to 0, and ties the parameters to the buffer."""
        self.flat.zero_()
        for parameter, view in zip(self._parameters.values(), self._views, strict=True):
            parameter.grad = view.view_as(parameter)

    def of(self, names: Sequence[str]) -> Tensor:
        """The flat gradients of parameters that follow each other in the buffer, from the first name on."""
        order = list(self._parameters)
        first = order.index(names[0])
        if order[first : first + len(names)] != list(names):
            raise ValueError("these parameters do not follow each other in the buffer")
        start = sum(view.numel() for view in self._views[:first])
        return self.gradients[start:][: sum(self._parameters[name].numel() for name in names)]

    def clip_(self, max_norm: float) -> Tensor:
        """Scales the gradients down to `max_norm` where they are longer; 0 does not clip.

        Returns:
            Their norm before, a float32 scalar on the device.
        """
        norm = torch.linalg.vector_norm(self.gradients)
        if max_norm:
            self.gradients.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

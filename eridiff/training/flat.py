"""All trained parameters as views of flat memory: one sum over devices, one norm, one clip, one update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class FlatParameters:
    """Flat float32 memory that every parameter and every parameter's `.grad` is a view of.

    Parameters stay what they are to their modules: only their memory moves. Autograd adds into existing
    `.grad` tensors in place, so backward passes fill the gradients without a copy.

    Attributes:
        values: `[n]`, the parameters' numbers in their order.
        gradients: `[n]`.
        extra: `[num_extra]`, numbers that travel with the gradients.
        summed: `[n + num_extra]`, gradients and extra: what is summed over devices.

    Args:
        parameters: name to trained parameter, float32, all on one device.
        num_extra: the number of extras.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], num_extra: int) -> None:
        self._parameters = dict(parameters)
        sizes = [parameter.numel() for parameter in self._parameters.values()]
        self.values = torch.cat([parameter.detach().flatten() for parameter in self._parameters.values()])
        for parameter, part in zip(self._parameters.values(), self.values.split(sizes), strict=True):
            parameter.data = part.view(parameter.shape)
        self.summed = self.values.new_zeros(sum(sizes) + num_extra)
        self.gradients, self.extra = self.summed[: sum(sizes)], self.summed[sum(sizes) :]
        self._views = self.gradients.split(sizes)
        for parameter, view in zip(self._parameters.values(), self._views, strict=True):
            parameter.grad = view.view_as(parameter)

    def zero_(self) -> None:
        """Sets all gradients and extras to 0."""
        self.summed.zero_()

    def as_one(self, names: Sequence[str]) -> nn.Parameter:
        """Parameters that follow each other, from the first name on, as one `[m]` with its gradient."""
        order = list(self._parameters)
        first = order.index(names[0])
        if order[first : first + len(names)] != list(names):
            raise ValueError("these parameters do not follow each other")
        start = sum(view.numel() for view in self._views[:first])
        stretch = slice(start, start + sum(self._parameters[name].numel() for name in names))
        one = nn.Parameter(self.values[stretch])
        one.grad = self.gradients[stretch]
        return one

    def clip_(self, max_norm: float) -> Tensor:
        """Scales the gradients down to `max_norm` where they are longer; 0 does not clip.

        Returns:
            Their norm before, a float32 scalar on the device.
        """
        norm = torch.linalg.vector_norm(self.gradients)
        if max_norm:
            self.gradients.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

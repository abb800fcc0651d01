"""One optimizer step over fixed inputs, replayed as a CUDA graph where that is asked for.

Small models at small sizes spend their time launching kernels; a graph launches a whole step at once. All
inputs of the loss must then be tensors that stay in place: the caller overwrites them between steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

_WARM_UP_STEPS = 4
_MAX_NORM = 1.0


class TrainingStep:
    """AdamW with clipped gradients and a moving average of the weights.

    Args:
        model: whose parameters are trained, in place.
        loss: computes the scalar loss of the inputs as they are now.
        betas: AdamW's.
        average: share of the moving average that a step keeps.
        capture: replay steps as a CUDA graph.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[], Tensor],
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        average: float = 0.999,
        capture: bool,
    ) -> None:
        self._loss, self._average = loss, average
        self._weights: list[Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
        device = self._weights[0].device
        self._lr = torch.zeros((), device=device)
        on_gpu = device.type == "cuda"
        self._optimizer = torch.optim.AdamW(
            self._weights, lr=self._lr, betas=betas, weight_decay=0.01, capturable=on_gpu, fused=on_gpu
        )
        self._averages = [weight.detach().clone() for weight in self._weights]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._value = torch.zeros((), device=device)
        if capture:
            self._capture()

    def __call__(self, lr: float) -> Tensor:
        """Take a step; returns the loss, a scalar that the next step overwrites."""
        self._lr.fill_(lr)
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()
        return self._value

    @torch.no_grad()
    def reset(self) -> None:
        """Forget the optimizer's moments and restart the average from the weights of now."""
        for state in self._optimizer.state.values():
            for value in state.values():
                value.zero_()
        torch._foreach_copy_(self._averages, self._weights)

    @torch.no_grad()
    def adopt_average(self) -> None:
        """Set the weights to their moving average."""
        torch._foreach_copy_(self._weights, self._averages)

    def _step(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights, _MAX_NORM)
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._weights, 1 - self._average)
            self._value.copy_(loss.detach())

    def _capture(self) -> None:
        """Warm up and record at learning rate zero, which leaves the weights as they are."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_STEPS):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self._graph = graph
        self.reset()


def cosine(progress: float, peak: float, *, warm_up: float = 0.02) -> float:
    """Learning rate at `progress` in [0, 1]: linear up to `peak`, then down to zero as a cosine."""
    if progress < warm_up:
        return peak * max(progress, warm_up / 20) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))

"""Forward and backward passes recorded as CUDA graphs, one for each shape of batch, replayed without Python.

At small batches a GPU finishes kernels faster than Python launches them. A graph launches all of a pass at
once (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). What a pass draws or decides must lie
in its inputs, which here it does: a `Batch` holds everything random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eridiff.diffusion.objectives import Losses
from eridiff.training.compiling import num_compiled
from eridiff.training.step import Batch

Pass = Callable[[Batch, Tensor], Losses]
"""Adds up the gradients of a batch's summed loss, times a factor; returns the losses, detached."""

Shapes = tuple[torch.Size, ...]
MAX_RECORDINGS = 32
"""Shapes that are recorded; batches of further ones run launch by launch, at the same result."""


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    batch: Batch
    factor: Tensor
    losses: Losses


class Recorded:
    """A pass that runs as it is while a shape is new to it, then is recorded, then replayed.

    First runs compile kernels and fill caches; after one that compiled nothing, only launches are left to be
    recorded. A recording keeps its memory: all share one pool, so that together they take about what the
    largest takes.

    Args:
        run: the pass, on a CUDA device; it must not wait for the device.
        device: the CUDA device.
    """

    def __init__(self, run: Pass, device: torch.device) -> None:
        self._run, self._device = run, device
        self._settled: set[Shapes] = set()
        self._recordings: dict[Shapes, _Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Batch, factor: float) -> Losses:
        """The losses of `batch`, which may lie in pinned memory; the pass adds up its gradients."""
        shapes = tuple(tensor.shape for tensor in batch.tensors())
        recording = self._recordings.get(shapes)
        if recording is None:
            if shapes not in self._settled or len(self._recordings) == MAX_RECORDINGS:
                before = num_compiled()
                losses = self._run(batch.to(self._device), torch.full((), factor, device=self._device))
                if num_compiled() == before:
                    self._settled.add(shapes)
                return losses
            recording = self._recordings[shapes] = self._record(batch)
        for there, new in zip(recording.batch.tensors(), batch.tensors(), strict=True):
            there.copy_(new, non_blocking=True)
        recording.factor.fill_(factor)
        recording.graph.replay()
        return Losses(recording.losses.weighted.clone(), recording.losses.plain.clone())

    @property
    def settled(self) -> bool:
        """Whether passes ran as they are: what then does not fit may be a recording, or others beside it."""
        return bool(self._settled)

    def forget(self) -> None:
        """Lets all recordings and their memory go, for good."""
        torch.cuda.synchronize(self._device)
        self._recordings.clear()
        torch.cuda.empty_cache()

    def _record(self, batch: Batch) -> _Recording:
        batch = batch.to(self._device).each(torch.Tensor.clone)
        factor = torch.ones((), device=self._device)
        graph = torch.cuda.CUDAGraph()
        # Other threads pin memory meanwhile, which is no part of the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            losses = self._run(batch, factor)
        return _Recording(graph, batch, factor, losses)

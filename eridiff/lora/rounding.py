"""All LoRA factors of a model rounded at once, for a pass, from the flat memory that they are trained in.

Rounded one by one they are two small kernels each, two more for their gradients and two to add those up:
half of all that a GPU is told to do at small batches. Here autograd sees one rounding of one tensor, whose
gradient it collects from all layers and adds up once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from eridiff.lora.forward import Factors, LoraForward


@dataclass(frozen=True)
class _Span:
    """Where a factor lies in the flat memory, and what it looks like."""

    start: int
    shape: torch.Size

    @property
    def stop(self) -> int:
        return self.start + self.shape.numel()


class Rounding:
    """Rounds the factors of LoRA layers ahead of a pass.

    Args:
        forwards: the layers. Those whose factors do not lie in the memory, such as changes from a start, go
            on rounding by themselves. Where the `down`s of one follow each other there, nothing is copied.
        values: `[n]` float32, the memory of trained parameters.
        gradients: `[n]` float32, which backward passes add to.
        dtype: of the products.
    """

    def __init__(
        self, forwards: Sequence[LoraForward], values: Tensor, gradients: Tensor, dtype: torch.dtype
    ) -> None:
        self._values, self._gradients, self._dtype = values, gradients, dtype
        self._spans = {
            forward: (
                _merged([_span(down, values) for down in forward.downs]),
                [_span(up, values) for up in forward.ups],
            )
            for forward in forwards
            if all(_lies_in(values, factor) for factor in (*forward.downs, *forward.ups))
        }
        spans = [span for downs, ups in self._spans.values() for span in (*downs, *ups)]
        self._sizes: list[int] = []
        self._places: dict[int, int] = {}
        position = 0
        for span in sorted(spans, key=lambda span: span.start):
            if span.start > position:  # of layers that are not among these
                self._sizes.append(span.start - position)
            self._places[span.start] = len(self._sizes)
            self._sizes.append(span.stop - span.start)
            position = span.stop
        self._sizes.append(values.numel() - position)

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """A context in which the layers compute with rounded factors; backward passes belong inside, too."""
        leaf = self._values.detach().requires_grad_()
        leaf.grad = self._gradients
        parts = leaf.to(self._dtype).split(self._sizes)

        def at(span: _Span) -> Tensor:
            return parts[self._places[span.start]].view(span.shape)

        for forward, (downs, ups) in self._spans.items():
            down = at(downs[0]) if len(downs) == 1 else torch.cat([at(span) for span in downs])
            forward.rounded = Factors(down, tuple(at(span) for span in ups))
        try:
            yield
        finally:
            for forward in self._spans:
                forward.rounded = None


def _lies_in(values: Tensor, factor: Tensor) -> bool:
    return factor.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()


def _span(factor: Tensor, values: Tensor) -> _Span:
    return _Span(int(factor.storage_offset() - values.storage_offset()), factor.shape)


def _merged(spans: Sequence[_Span]) -> list[_Span]:
    """Spans of which those that follow each other are one."""
    merged = [spans[0]]
    for span in spans[1:]:
        last = merged[-1]
        if span.start == last.stop and span.shape[1:] == last.shape[1:]:
            merged[-1] = _Span(last.start, torch.Size((last.shape[0] + span.shape[0], *span.shape[1:])))
        else:
            merged.append(span)
    return merged

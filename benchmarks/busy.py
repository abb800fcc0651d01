"""How much of the time a GPU computes, from its own record of kernels."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_NOT_COMPUTING = ("Memcpy", "Memset")


class Busy:
    """Records a GPU's kernels from `start` to `stop`; elsewhere it knows nothing."""

    def __init__(self) -> None:
        self._profile: profile | None = None
        self._started = 0.0
        if torch.cuda.is_available():
            with profile(activities=[ProfilerActivity.CUDA]):  # the first takes seconds
                torch.ones(1, device="cuda").sum().item()

    @property
    def recording(self) -> bool:
        """Whether the clock runs."""
        return bool(self._started)

    def start(self) -> None:
        """Starts the record and its clock."""
        if torch.cuda.is_available():
            self._profile = profile(activities=[ProfilerActivity.CUDA])
            self._profile.start()
        self._started = time.monotonic()

    def stop(self) -> tuple[float, float | None]:
        """Seconds since `start`, and the share of them in which at least one kernel ran."""
        if self._profile is None:
            return time.monotonic() - self._started, None
        torch.cuda.synchronize()
        seconds = time.monotonic() - self._started
        self._profile.stop()
        spans = [
            (event.time_range.start, event.time_range.end)
            for event in self._profile.events() or ()
            if event.device_type == DeviceType.CUDA and not event.name.startswith(_NOT_COMPUTING)
        ]
        return seconds, covered(spans) / 1e6 / seconds


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total

"""Learning rate as a pure function of the step: a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

SHAPES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}
"""Name to the rate's factor for the share of steps after warm-up that are done, in [0, 1)."""


def rate_factor(step: int, *, shape: str, warmup_steps: int, num_steps: int) -> float:
    """What the peak learning rate is multiplied with in a step.

    The first step already has a rate above 0, the first after warm-up has the peak, and the last of all still
    has a rate above 0: no step is spent for nothing.

    Args:
        step: the step about to be made, from 0.
        shape: a key of `SHAPES`.
        warmup_steps: steps of linear rise before the peak.
        num_steps: steps of the whole run.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return SHAPES[shape]((step - warmup_steps) / max(1, num_steps - warmup_steps))

"""A turn on a machine's GPU by Prefect's limits, beside the lock file that stages take anyway."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.concurrency.sync import concurrency

LIMIT_VARIABLE = "ERIDIFF_GPU_LIMIT"
"""Name of the global concurrency limit of this machine's GPU, set in its worker's environment."""
LEASE_S = 60.0
"""How long a killed holder keeps its slot; renewed meanwhile by those that live."""


@contextmanager
def gpu_turn() -> Iterator[None]:
    """Waits for a slot of the machine's limit; a limit that does not exist is an error, no licence.

    Without the variable nothing is asked: the lock file alone keeps jobs apart. A renewal that fails because
    the server is away for a while does not end a training: the lock file still holds.
    """
    name = os.environ.get(LIMIT_VARIABLE)
    if not name:
        yield
        return
    with concurrency(name, strict=True, lease_duration=LEASE_S, raise_on_lease_renewal_failure=False):
        yield

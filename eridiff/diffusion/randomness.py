"""Random numbers as pure functions of names: the same seed and parts give the same stream anywhere."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *parts: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on `seed` and `parts` alone.

    Name what is drawn and for whom: `generator(seed, "noise", step, sample_id)`. Two purposes never share a
    stream, and no draw depends on the order of the others or on the number of devices.

    Args:
        seed: the run's seed.
        parts: purpose, step, sample id, ...: joined by `/` and hashed.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))

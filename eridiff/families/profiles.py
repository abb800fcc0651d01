"""What fits training at 1024² px, rank 16 and batch 1 into cards of a size. No torch.

The figures beside them are `training.footprint`'s: predicted peaks leave a tenth or more of the card to the
desktop and to larger LoRAs. Eight bits and blocks that stay away are preferred to four bits: they cost time
rather than quality.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

ProfileName = Literal["24gb", "16gb", "12gb", "8gb"]
PROFILES: tuple[ProfileName, ...] = get_args(ProfileName)

Profile = Mapping[str, Mapping[str, Any]]
"""Section of a recipe to its keys and their values."""


def profile(
    *,
    quantize: Literal["none", "int8", "nf4"] = "none",
    offload: float = 0.0,
    checkpointing: bool | Literal["auto"] = True,
    optimizer: str = "adamw",
) -> Profile:
    """A profile of these settings; those that are defaults anyway are in it, too, to be seen."""
    train = {"gradient_checkpointing": checkpointing, "offload": offload, "optimizer": optimizer}
    return MappingProxyType({"model": {"quantize": quantize}, "train": train})

"""What torch's compiler raises, as an error that names the setting to change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eridiff.errors import ModelError


@contextmanager
def compiler_errors(setting: str) -> Iterator[None]:
    """Raises failures of the compiler as ModelError, while the block lasts; all others get through.

    Nothing is done uncompiled in its place: that would take several times as long, and nobody would know why.

    Args:
        setting: the key of the recipe that asks for compiling, such as `train.compile`.
    """
    try:
        yield
    except Exception as error:
        if not _of_compiler(error):
            raise
        raise ModelError(
            "torch's compiler fails on this machine or on this model",
            where=setting,
            found=" ".join(str(error).strip().splitlines()[:2])[:300],  # who raised, and what
            fix=f"set {setting}: false, which only takes more time",
        ) from error


def _of_compiler(error: Exception) -> bool:
    exceptions: Any = sys.modules.get("torch._dynamo.exc")  # there once something was compiled
    return exceptions is not None and isinstance(error, exceptions.TorchDynamoException)

"""The smallest safetensors files: what they hold is a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save


def write_text(path: Path, text: str) -> None:
    """Writes a file with one tensor, the bytes of `text`."""
    path.write_bytes(save({"text": np.frombuffer(text.encode(), np.uint8)}))


def read_text(path: Path) -> str:
    """The text in a whole file."""
    return load_file(path)["text"].tobytes().decode()

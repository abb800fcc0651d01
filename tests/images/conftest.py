from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]
Write = Callable[[Path, bytes], Path]


@pytest.fixture
def encode() -> Encode:
    """`encode(image, "PNG", **options) -> bytes`."""

    def save(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    return save


@pytest.fixture
def photo(encode: Encode) -> Callable[..., bytes]:
    """`photo(seed, width, height, kind) -> bytes`: distinct noisy images."""

    def make(seed: int = 0, width: int = 64, height: int = 48, kind: str = "JPEG") -> bytes:
        cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        return encode(Image.fromarray(cells).resize((width, height)), kind)

    return make


@pytest.fixture
def write() -> Write:
    """Writes a file that looks old enough for its time to be believed."""

    def make(path: Path, data: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (1_600_000_000.25, 1_600_000_000.25))
        return path

    return make

"""The picture that programs show for a LoRA file, inside its metadata; nothing here loads torch."""

from __future__ import annotations

import base64
from collections.abc import Mapping

THUMBNAIL = "modelspec.thumbnail"
_START, _END = "data:", ";base64,"


def thumbnail(image: bytes, mime: str) -> dict[str, str]:
    """A picture to show for the file: a small JPEG, PNG or WebP as `mime` says, such as `image/jpeg`."""
    return {THUMBNAIL: f"{_START}{mime}{_END}{base64.b64encode(image).decode()}"}


def described(metadata: Mapping[str, str]) -> str | None:
    """What kind of picture a file's metadata hold, and its size, for people; None where there is none."""
    value = metadata.get(THUMBNAIL)
    if value is None:
        return None
    mime, found, data = value.removeprefix(_START).partition(_END)
    if not found:
        return "not a data URL"
    return f"{mime}, {len(data) * 3 // 4 - data[-2:].count('='):,} bytes"

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """Four different quarters on a gradient: no turn or mirror of it equals another."""
    values = np.zeros((height, width, 3), dtype=np.uint8)
    values[: height // 2, : width // 2] = (250, 20, 20)
    values[: height // 2, width // 2 :] = (20, 250, 20)
    values[height // 2 :, : width // 2] = (20, 20, 250)
    values[height // 2 :, width // 2 :] = (240, 240, 30)
    return Image.fromarray(values)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes, before_end: bytes = b"") -> bytes:
    """A PNG put together by hand, for what Pillow cannot write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + before_end
        + png_chunk(b"IEND", b"")
    )


def tiff_grey(values: list[int], *, bits: int, inverted: bool = False) -> bytes:
    """A one-row grey TIFF of 12 or 16 bits a pixel."""
    if bits == 12:
        packed = b"".join(
            ((a << 12) | b).to_bytes(3, "big") for a, b in zip(values[::2], values[1::2], strict=True)
        )
    else:
        packed = b"".join(value.to_bytes(2, "little") for value in values)
    tags = [
        (256, 3, 1, len(values)),
        (257, 3, 1, 1),
        (258, 3, 1, bits),
        (259, 3, 1, 1),
        (262, 3, 1, 0 if inverted else 1),
        (273, 4, 1, 8 + 2 + 9 * 12 + 4),
        (277, 3, 1, 1),
        (278, 3, 1, 1),
        (279, 4, 1, len(packed)),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed

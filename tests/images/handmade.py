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


def grey_ink_profile() -> bytes:
    """An ICC profile of a printer whose every ink is grey: lightness is what is left of paper."""
    lightness = [round(255 * 0.5 ** bin(inks).count("1")) if inks else 255 for inks in range(16)]
    identity = struct.pack(">9i", *(65536 if index % 4 == 0 else 0 for index in range(9)))
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4
    table += bytes(value for level in lightness for value in (level, 128, 128)) + ramp * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"wtpt": white, b"A2B0": table + bytes(-len(table) % 4)}
    offset = 128 + 4 + 12 * len(tags)
    index = struct.pack(">I", len(tags))
    for name, data in tags.items():
        index += name + struct.pack(">II", offset, len(data))
        offset += len(data)
    header = struct.pack(">I4sI4s4s4s", offset, bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + index + b"".join(tags.values())

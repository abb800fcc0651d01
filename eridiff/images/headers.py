"""The format and size of an image file's bytes, and whether they are whole, mostly without decoding.

A file is taken as whole when its format's own end is there: JPEG's end marker behind the first scan, PNG's
last chunk, WebP's length. Anything else (other formats, a missing end, orientation hidden behind the pixels)
is decoded in full to find out. So a file cut short is found here; pixels damaged in the middle are found when
the image is encoded. Both are quarantined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eridiff.images.decode import SIDEWAYS, decode_rgb, orientation
from eridiff.images.formats import decoder_errors_are_the_files, open_image

_SCAN, _END = 0xDA, b"\xff\xd9"
_PNG_ORIENTATION = (b"eXIf", b"tiff:Orientation", b"Raw profile type exif")


@dataclass(frozen=True, slots=True)
class Measured:
    """What an image file holds.

    Attributes:
        extension: the format, e.g. `jpg`, whatever the file is called.
        width: px, of the upright image.
        height: px, of the upright image.
    """

    extension: str
    width: int
    height: int


def measure(data: bytes) -> Measured:
    """The format and upright size of an image file's bytes.

    Raises:
        UnusableImage: they are no image, broken, cut short, or too large to decode.
    """
    extension, image = open_image(data)
    if not _is_whole(extension, data) or _orientation_is_hidden(extension, data, image.info):
        return Measured(extension, *decode_rgb(data).size)
    width, height = image.size
    if extension == "png" and "exif" not in image.info:
        return Measured(extension, width, height)  # getexif() would decode all pixels in search of it
    with decoder_errors_are_the_files(f"its {extension} header is broken"):
        sideways = orientation(image) in SIDEWAYS
    return Measured(extension, *((height, width) if sideways else (width, height)))


def _is_whole(extension: str, data: bytes) -> bool:
    if extension == "jpg":
        scan = _first_scan(data)
        return scan is not None and data.rfind(_END, scan) > 0
    if extension == "png":
        return data.rfind(b"IEND") > 0
    if extension == "webp":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False


def _first_scan(data: bytes) -> int | None:
    """Where a JPEG's first scan starts; walks the segments: an EXIF thumbnail has markers of its own."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding before a marker
            position += 1
            continue
        if marker == _SCAN:
            return position
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _orientation_is_hidden(extension: str, data: bytes, info: Mapping[Any, object]) -> bool:
    """Whether a PNG tells its orientation behind the pixels, or in a way that only a full reading decodes."""
    return extension == "png" and "exif" not in info and any(mark in data for mark in _PNG_ORIENTATION)

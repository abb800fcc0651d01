"""Which image format bytes are in, and a lazy Pillow image of them.

Formats are told by their first bytes, not by the file's name: a PNG that is called `.jpg` is a PNG. Pillow's
plugins are called directly, since `Image.open` tries formats that nobody asked for and refuses large
panoramas by a limit that is global to the process; here `refuse_oversize` draws the line.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from eridiff.errors import DataError

MAX_AREA_PX = 400_000_000
"""Larger images are not decoded: as RGB, this is 1.2 GB of memory."""

_PLUGINS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "jpg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tif": TiffImagePlugin.TiffImageFile,
}
EXTENSIONS = tuple(_PLUGINS)
"""One file extension for each format, as shards use it."""

_DECODER_ERRORS = (
    OSError,
    SyntaxError,  # Pillow's way to say "not this format after all"
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    EOFError,
    RuntimeError,  # NotImplementedError too
    struct.error,
    zlib.error,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)


class UnusableImage(DataError):  # noqa: N818 - a verdict on a file; the run goes on without it
    """An image that cannot be trained on.

    Args:
        reason: why, for the user, e.g. `it is cut short`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("An image cannot be used.", found=reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnusableImage], tuple[str]]:
        return type(self), (self.reason,)


@contextmanager
def decoder_errors_are_the_files(doing: str) -> Iterator[None]:
    """Turns whatever a decoder raises on bad bytes into `UnusableImage`, with what it said as the reason."""
    try:
        yield
    except _DECODER_ERRORS as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UnusableImage(f"{doing}: {said}") from error


def sniff(data: bytes) -> str | None:
    """The format of an image file's bytes as one of `EXTENSIONS`, or None where it is none of them."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp" and b"avi" in data[8:64]:
        return "avif"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tif"
    if data.startswith(b"BM"):
        return "bmp"
    return None


def open_image(data: bytes) -> tuple[str, ImageFile]:
    """The format and the image in an image file's bytes; only headers are read, pixels on `load()`.

    Raises:
        UnusableImage: empty, of no known format, of a broken header, or too large to decode.
    """
    if not data:
        raise UnusableImage("the file is empty")
    extension = sniff(data)
    if extension is None:
        raise UnusableImage(f"not a {', '.join(EXTENSIONS)} image: it starts with {data[:8].hex(' ')}")
    with decoder_errors_are_the_files(f"its {extension} header is broken"):
        image = _PLUGINS[extension](io.BytesIO(data))
    refuse_oversize(*image.size)
    return extension, image


def refuse_oversize(width: int, height: int) -> None:
    """Raises `UnusableImage` if an image of that many px is more than is ever decoded (`MAX_AREA_PX`)."""
    if width * height > MAX_AREA_PX:
        raise UnusableImage(
            f"{width} x {height} px is {width * height / 1e6:.0f} megapixels; "
            f"at most {MAX_AREA_PX // 1_000_000} are decoded"
        )

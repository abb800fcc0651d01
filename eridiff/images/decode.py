"""From the bytes of an image file to upright RGB pixels, cropped to a bucket."""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from eridiff.images.buckets import Geometry
from eridiff.images.formats import UnusableImage, decoder_errors_are_the_files, open_image

PIXEL_RULES = {
    "version": 1,
    "orientation": "exif",
    "alpha": "flattened on white",
    "depth": "16 bit scaled to 8",
    "resampler": "lanczos",
    "crop": "centre",
}
"""What decides pixels besides the file and its geometry: part of the name of every latent made from them."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""

_WHITE_IS_ZERO = 0
_UNSUITED_MODES = {"F": "floating-point", "I": "32-bit integer"}


def decode_rgb(data: bytes) -> Image.Image:
    """The image in a file's bytes, turned upright, in 8-bit RGB.

    Transparency is flattened on white. Grey of 16 bits is scaled, not clipped, to 8. CMYK goes through its
    own colour profile where it has one; other profiles are not applied, as in other trainers. Of a file with
    several frames the first is taken.

    Raises:
        UnusableImage: the bytes are no image, damaged or cut short, or their values have no agreed range.
    """
    extension, image = open_image(data)
    with decoder_errors_are_the_files(f"its {extension} data is damaged"):
        image.load()
        if image.mode.startswith("I;16"):
            return _turned(_eight_bits(image), orientation(image)).convert("RGB")
        return _as_rgb(_turned(image, orientation(image)))


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where there is none that can be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, OSError, KeyError, IndexError):  # broken EXIF, sound pixels
        return 1
    return found if found in _TURNS else 1


def resize_and_crop(image: Image.Image, geometry: Geometry) -> Image.Image:
    """The part of an upright RGB image that fills its bucket, `bucket_width` x `bucket_height` px (Lanczos).

    Raises:
        UnusableImage: the image is not of the size that the geometry was made for.
    """
    if image.size != (geometry.width, geometry.height):
        raise UnusableImage(
            f"it decodes to {image.width} x {image.height} px, "
            f"and its header said {geometry.width} x {geometry.height}"
        )
    resized = (geometry.resized_width, geometry.resized_height)
    if image.size != resized:
        image = image.resize(resized, Image.Resampling.LANCZOS)
    left, top = geometry.crop_left, geometry.crop_top
    return image.crop((left, top, left + geometry.bucket_width, top + geometry.bucket_height))


def _turned(image: Image.Image, exif_orientation: int) -> Image.Image:
    turn = _TURNS.get(exif_orientation)
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of up to 16 bits in 8, rounded; its transparent value becomes white.

    In TIFF, white may be 0, and scanners write 12 bits as well.
    """
    white, inverted = 65_535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        white = 2 ** int(image.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0]) - 1
        inverted = image.tag_v2[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] == _WHITE_IS_ZERO
    values = np.asarray(image).astype(np.uint32).clip(max=white)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = white
    eight = ((values * 255 + white // 2) // white).astype(np.uint8)
    return Image.fromarray(255 - eight if inverted else eight)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _UNSUITED_MODES:
        raise UnusableImage(f"{_UNSUITED_MODES[image.mode]} pixels, of which white is unknown")
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image)
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        background = Image.new("RGBA", with_alpha.size, "white")
        return Image.alpha_composite(background, with_alpha).convert("RGB")
    return image.convert("RGB")


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        raise UnusableImage(f"the colour profile of its CMYK data cannot be used: {error}") from error
    assert converted is not None  # only `inPlace` returns nothing
    return converted

from __future__ import annotations

import io
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

from eridiff.images.buckets import Placement, place
from eridiff.images.decode import decode_rgb, resize_and_crop
from eridiff.images.formats import UnusableImage
from eridiff.images.headers import measure
from tests.images.handmade import grey_ink_profile, picture, png, tiff_grey


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    width, height = image.size
    return [image.getpixel((x, y)) for y in (3, height - 4) for x in (3, width - 4)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(encode, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), kind, exif=exif, quality=95)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    decoded = decode_rgb(data)
    assert decoded.size == ((48, 32) if orientation < 5 else (32, 48)) == wanted.size
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(wanted))
    measured = measure(data)
    assert (measured.width, measured.height) == decoded.size


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_does_not_cost_the_image(encode):
    data = encode(picture(), "JPEG", exif=b"Exif\0\0no tiff at all")
    assert decode_rgb(data).size == (48, 32)
    assert measure(data).width == 48


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_flattened_on_white(encode, mode):
    image = Image.new("RGBA", (4, 1))
    for x, pixel in enumerate([(0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 128), (80, 80, 80, 0)]):
        image.putpixel((x, 0), pixel)
    image = image.quantize(colors=4) if mode == "P" else image.convert(mode)
    decoded = decode_rgb(encode(image, "PNG"))
    assert decoded.mode == "RGB"
    grey = [decoded.getpixel((x, 0))[0] for x in range(4)]
    assert grey == pytest.approx([255, 0, 127, 255], abs=1)


@pytest.mark.parametrize(("mode", "transparent"), [("L", 7), ("RGB", (7, 7, 7)), ("P", 0)])
def test_a_transparent_colour_becomes_white(encode, mode, transparent):
    image = Image.new("L", (2, 1), 7).convert(mode)
    image.putpixel((1, 0), 200 if mode == "L" else (200, 200, 200) if mode == "RGB" else 1)
    if mode == "P":
        image.putpalette([9, 9, 9, 200, 200, 200])
        image.putpixel((0, 0), 0)
    decoded = decode_rgb(encode(image, "PNG", transparency=transparent))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 200, 200)]


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_and_palette_become_rgb(encode, mode):
    image = Image.new("L", (2, 1))
    image.putpixel((1, 0), 255)
    decoded = decode_rgb(encode(image.convert(mode), "PNG"))
    assert decoded.mode == "RGB"
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


def test_cmyk_is_not_inverted(encode):
    decoded = decode_rgb(encode(picture().convert("CMYK"), "JPEG", quality=98))
    for found, wanted in zip(corners(decoded), corners(picture()), strict=True):
        assert found == pytest.approx(wanted, abs=24)


def test_a_cmyk_profile_is_applied(encode):
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    plain, managed = (
        decode_rgb(encode(inks, "TIFF", **options)).getpixel((8, 8))
        for options in ({}, {"icc_profile": grey_ink_profile()})
    )
    assert plain == (0, 255, 255)
    assert managed == pytest.approx((119, 119, 119), abs=4)


def test_a_broken_cmyk_profile_is_a_reason(encode):
    data = encode(picture().convert("CMYK"), "JPEG", icc_profile=b"no profile" * 20)
    with pytest.raises(UnusableImage, match="An image cannot be used") as raised:
        decode_rgb(data)
    assert "colour profile" in raised.value.reason


SIXTEEN = [0, 128 * 257, 200 * 257 + 100, 65_535]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(encode, kind):
    decoded = decode_rgb(encode(Image.fromarray(np.array([SIXTEEN], dtype=np.uint16)), kind))
    assert [decoded.getpixel((x, 0))[0] for x in range(4)] == [0, 128, 200, 255]


def test_16_bit_rgb_is_scaled():
    row = b"\0" + b"".join(value.to_bytes(2, "big") for value in SIXTEEN * 3)
    decoded = decode_rgb(png(4, 1, depth=16, colour=2, rows=row))
    flat = [channel for x in range(4) for channel in decoded.getpixel((x, 0))]
    assert flat == pytest.approx([0, 128, 200, 255] * 3, abs=1)


def test_12_bit_grey_is_scaled():
    decoded = decode_rgb(tiff_grey([0, 2048, 1024, 4095], bits=12))
    assert [decoded.getpixel((x, 0))[0] for x in range(4)] == [0, 128, 64, 255]


def test_inverted_grey_is_turned_right():
    decoded = decode_rgb(tiff_grey([0, 65_535], bits=16, inverted=True))
    assert [decoded.getpixel((x, 0))[0] for x in (0, 1)] == [255, 0]


@pytest.mark.parametrize(("mode", "word"), [("F", "floating-point"), ("I", "32-bit")])
def test_pixels_without_a_known_white_are_a_reason(encode, mode, word):
    with pytest.raises(UnusableImage) as raised:
        decode_rgb(encode(Image.new(mode, (4, 4)), "TIFF"))
    assert word in raised.value.reason


def test_the_first_frame_is_taken(encode):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode_rgb(data).getpixel((8, 8)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"", "empty"), (b"hello, world", "not a"), (b"\xff\xd8\xff\xe0oops", "header"), (b"BM", "header")],
)
def test_what_is_no_image_says_why(data, word):
    for judge in (decode_rgb, measure):
        with pytest.raises(UnusableImage) as raised:
            judge(data)
        assert word in raised.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_cut_short_is_found_before_anything_is_encoded(photo, kind, share):
    whole = photo(kind=kind)
    data = whole[: int(len(whole) * share)]
    for judge in (decode_rgb, measure):
        with pytest.raises(UnusableImage):
            judge(data)
    assert measure(whole).width == 64


def test_a_long_panorama_is_no_bomb(encode):
    data = encode(Image.new("RGB", (30_000, 12)), "JPEG")
    assert measure(data).width == 30_000
    assert decode_rgb(data).size == (30_000, 12)


def test_pillows_global_limit_does_not_decide(monkeypatch, photo):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_rgb(photo()).size == (64, 48)


def test_too_large_to_decode_is_told_from_the_header():
    data = png(40_000, 40_000, depth=8, colour=2, rows=b"")
    for judge in (decode_rgb, measure):
        with pytest.raises(UnusableImage) as raised:
            judge(data)
        assert raised.value.reason == "40000 x 40000 px is 1600 megapixels; at most 400 are decoded"


def test_resized_to_cover_and_cropped_in_the_centre():
    image = picture(96, 64)
    cropped = resize_and_crop(image, place(96, 64, ((64, 64),)))
    assert cropped.size == (64, 64)
    left, right = corners(cropped)[:2]
    assert left == pytest.approx((250, 20, 20), abs=3)
    assert right == pytest.approx((20, 250, 20), abs=3)
    assert image.resize((96, 64)).crop((16, 0, 80, 64)).getpixel((31, 0)) == cropped.getpixel((31, 0))


def test_a_fitting_image_is_left_alone():
    image = picture(64, 64)
    np.testing.assert_array_equal(
        np.asarray(resize_and_crop(image, place(64, 64, ((64, 64),)))), np.asarray(image)
    )


def test_geometry_for_another_image_is_refused():
    wrong = replace(place(64, 64, ((64, 64),)), width=65)
    assert isinstance(wrong, Placement)
    with pytest.raises(UnusableImage) as raised:
        resize_and_crop(picture(64, 64), wrong)
    assert "64 x 64" in raised.value.reason


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF"])
def test_damaged_bytes_never_raise_anything_else(photo, kind):
    chance = random.Random(kind)
    whole = photo(kind=kind)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            data[chance.randrange(chance.choice((64, len(data))))] = chance.randrange(256)
        try:
            decoded = decode_rgb(bytes(data))
        except UnusableImage:
            continue
        assert decoded.mode == "RGB"
        measured = measure(bytes(data))
        assert (measured.width, measured.height) == decoded.size

from __future__ import annotations

import pytest
from PIL import Image

from eridiff.images import headers
from eridiff.images.formats import UnusableImage
from eridiff.images.headers import Measured, measure
from tests.images.handmade import picture, png, png_chunk


@pytest.fixture
def no_decoding(monkeypatch):
    def refuse(data: bytes) -> Image.Image:
        raise AssertionError("decoded")

    monkeypatch.setattr(headers, "decode_rgb", refuse)


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_sound_files_are_measured_without_decoding(photo, kind, extension):
    assert measure(photo(width=64, height=48, kind=kind)) == Measured(extension, 64, 48)


@pytest.mark.parametrize(("kind", "extension"), [("BMP", "bmp"), ("TIFF", "tif"), ("AVIF", "avif")])
def test_other_formats_are_measured_too(photo, kind, extension):
    assert measure(photo(width=64, height=48, kind=kind)) == Measured(extension, 64, 48)


@pytest.mark.usefixtures("no_decoding")
def test_bytes_behind_a_jpeg_are_no_fault(photo):
    assert measure(photo() + b"\0\x01 a film that a phone put here").width == 64


def test_a_missing_end_is_decided_by_decoding(photo, monkeypatch):
    data = photo()
    assert data.endswith(b"\xff\xd9")
    with pytest.raises(UnusableImage):
        measure(data[:-2])
    monkeypatch.setattr(headers, "decode_rgb", lambda data: Image.new("RGB", (5, 4)))
    assert measure(data[:-2]) == Measured("jpg", 5, 4)


def test_the_end_of_an_embedded_thumbnail_does_not_count(encode, photo):
    thumbnail = photo(seed=3, width=16, height=16)
    data = encode(picture(256, 256), "JPEG", quality=98, comment=thumbnail)
    assert measure(data).width == 256
    cut = data[: data.rfind(b"\xff\xda") + 200]
    assert b"\xff\xd9" in cut
    with pytest.raises(UnusableImage):
        measure(cut)


def test_png_orientation_behind_the_pixels_is_found():
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    data = png(3, 2, depth=8, colour=0, rows=b"\0abc\0def", before_end=chunk)
    assert measure(data) == Measured("png", 2, 3)


def test_a_wrong_file_ending_does_not_matter(encode):
    assert measure(encode(picture(), "PNG")).extension == "png"

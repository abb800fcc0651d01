"""Words on a picture: a face that has their letters, wrapping by measured width, ellipsis when space ends."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

ELLIPSIS = "…"
FALLBACK_FACES = (
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "PingFang.ttc",
)
"""Faces of the system, looked up by name, for letters that the bundled one lacks; in order of preference."""

_ASCII_TWINS = str.maketrans({0xD7: "x", 0x2013: "-", 0x2014: "-", 0x2212: "-", 0x2192: ">", 0xA0: " "})
"""Multiplication sign, dashes, minus, arrow and hard space."""
_UNASSIGNED = "\U0010fffd"


BUNDLED = ""


def font(size_px: int, text: str = "") -> ImageFont.FreeTypeFont:
    """A face at `size_px` that can write `text`.

    Pillow's bundled Aileron where it has every letter, else the first face of the system that has, else
    Aileron.

    Raises:
        ValueError: This Pillow was built without FreeType and has only a bitmap font.
    """
    letters = {letter for letter in text if not letter.isspace()}
    for name in (BUNDLED, *FALLBACK_FACES):
        face = _face(name, size_px)
        if face is not None and all(_has(name, letter) for letter in letters):
            return face
    bundled = _face(BUNDLED, size_px)
    assert bundled is not None
    return bundled


def spelled(text: str) -> str:
    """`text` with the signs and accents that the bundled face lacks written in plain letters.

    Text in other scripts stays as it is: `font` looks for a face of the system.
    """
    plain = text.translate(_ASCII_TWINS)
    bare = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
    return bare if bare.isascii() else plain


def line_height(size_px: int) -> int:
    """Distance between two base lines in px, with a little air between them."""
    return round(1.32 * size_px)


def text_width(text: str, size_px: int) -> float:
    """Width of one line of `text` in px."""
    return font(size_px, text).getlength(text)


def wrap(text: str, size_px: int, width_px: int, max_lines: int) -> list[str]:
    """Lines of `text` that each fit `width_px`; the last one ends in an ellipsis where words were left out.

    A word wider than a line is broken between letters. Line breaks in the text count as spaces.
    """
    words = [piece for word in text.split() for piece in _broken(word, size_px, width_px)]
    lines: list[str] = []
    for word in words:
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size_px) <= width_px:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) <= max_lines:
        return lines
    kept = lines[:max_lines]
    return [*kept[:-1], _ended(kept[-1], size_px, width_px)] if kept else []


def fit(text: str, size_px: int, width_px: int) -> str:
    """`text` on one line of at most `width_px`, shortened with an ellipsis."""
    return text if text_width(text, size_px) <= width_px else _ended(text, size_px, width_px)


def _broken(word: str, size_px: int, width_px: int) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and text_width(pieces[-1] + letter, size_px) > width_px:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _ended(line: str, size_px: int, width_px: int) -> str:
    kept = line
    while kept and text_width(kept + ELLIPSIS, size_px) > width_px:
        kept = kept[:-1]
    return kept.rstrip(" ,;:.") + ELLIPSIS


@lru_cache(maxsize=256)
def _face(name: str, size_px: int) -> ImageFont.FreeTypeFont | None:
    if name != BUNDLED:
        try:
            return ImageFont.truetype(name, size_px)
        except OSError:  # this system does not have it
            return None
    face = ImageFont.load_default(size_px)
    if not isinstance(face, ImageFont.FreeTypeFont):
        raise ValueError("Pillow was built without FreeType: install a Pillow wheel from PyPI")
    return face


@lru_cache(maxsize=4096)
def _has(name: str, letter: str) -> bool:
    return _drawn(name, letter) != _drawn(name, _UNASSIGNED)


@lru_cache(maxsize=4096)
def _drawn(name: str, letter: str) -> bytes:
    picture = Image.new("L", (48, 48))
    ImageDraw.Draw(picture).text((8, 8), letter, 255, _face(name, 24))
    return picture.tobytes()

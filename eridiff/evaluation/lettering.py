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
_LOOK_PX = 24
"""The size at which a face is asked for its letters."""


BUNDLED = ""


def font(size_px: int, text: str = "") -> ImageFont.FreeTypeFont:
    """The face at `size_px` that has most letters of `text`.

    Pillow's bundled Aileron goes before faces of the system that have as many.

    Raises:
        ValueError: This Pillow was built without FreeType and has only a bitmap font.
    """
    face = _face(_best(text), size_px)
    assert face is not None
    return face


def spelled(text: str) -> str:
    """`text` with plain signs, and without the accents that not even the best face for it has."""
    plain = unicodedata.normalize("NFC", text.translate(_ASCII_TWINS))
    name = _best(plain)
    return "".join(letter if _has(name, letter) else _bare(name, letter) for letter in plain)


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


def _best(text: str) -> str:
    """Name of the face that has most letters of a text; of those that have as many, the first."""
    letters = {letter for letter in text if not letter.isspace()}
    names = [name for name in (BUNDLED, *FALLBACK_FACES) if _face(name, _LOOK_PX) is not None]
    return max(names, key=lambda name: sum(_has(name, letter) for letter in letters))


def _bare(name: str, letter: str) -> str:
    """A letter without its accents where a face has it so, else as it is."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c))
    return bare if all(_has(name, c) for c in bare) else letter


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
    ImageDraw.Draw(picture).text((8, 8), letter, 255, _face(name, _LOOK_PX))
    return picture.tobytes()

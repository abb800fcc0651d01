"""Every word that a demo caption can hold, so that the tiny tokenizers know it as one piece."""

from __future__ import annotations

COLORS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "white")
SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "crescent",
    "diamond",
    "hexagon",
    "flower",
    "cloud",
)
SIZES = ("small", "large")
PLACES = ("middle", "top", "bottom", "left", "right", "above", "below", "beside", "row", "column")
GROUNDS = (
    "cream",
    "mint",
    "lavender",
    "peach",
    "grey",
    "sky",
    "meadow",
    "sea",
    "desert",
    "snow",
    "sunset",
    "hills",
    "gradient",
    "background",
    "plain",
)
GLUE = (
    *("a", "an", "and", "the", "in", "on", "at", "of", "to", "over", "under", "with", "is", "are", "there"),
    *("picture", "drawing", "scene", "image", "from", "side", "by", "next", "corner", "one", "two", "three"),
)
TRIGGER = "glowline"
"""The word that names the second style; no plain caption holds it."""

FILLERS = (
    "simple",
    "flat",
    "tidy",
    "quiet",
    "paper",
    "studio",
    "poster",
    "print",
    "sketch",
    "style",
    "clean",
    "soft",
)
"""Words without meaning here: the bases meet them in training and learn to pass over them."""

EVERYDAY = (
    "photo",
    "cat",
    "dog",
    "house",
    "tree",
    "man",
    "woman",
    "black",
    "brown",
    "light",
    "dark",
    "big",
    "little",
)
"""Words that strangers try first; known as whole pieces, never drawn."""


def words() -> tuple[str, ...]:
    """All words in a fixed order, each once."""
    groups = (COLORS, SHAPES, SIZES, PLACES, GROUNDS, GLUE, (TRIGGER,), FILLERS, EVERYDAY)
    return tuple(dict.fromkeys(word for group in groups for word in group))

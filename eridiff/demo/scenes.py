"""Captioned scenes of a few shapes: what is in them, where, and how it is said. Drawing is in `drawing`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eridiff.demo.vocabulary import COLORS, FILLERS, SHAPES

Size = Literal["small", "", "large"]

BACKGROUNDS = (
    *("cream", "mint", "lavender", "peach", "grey"),
    *("sky", "meadow", "sea", "desert", "snow", "sunset", "hills"),
)

_BACKGROUND_PHRASES = {
    "sky": ("in the sky",),
    "meadow": ("over a meadow", "over the meadow"),
    "sea": ("over the sea",),
    "desert": ("over a desert", "over the desert"),
    "snow": ("over the snow",),
    "sunset": ("at sunset", "at a sunset"),
    "hills": ("over the hills",),
}
_HARD_TO_SEE = {
    "cream": ("white", "yellow"),
    "mint": ("white", "green"),
    "lavender": ("white", "purple"),
    "peach": ("orange", "pink"),
    "grey": ("white",),
    "sky": ("white", "blue"),
    "meadow": ("green",),
    "sea": ("blue", "teal"),
    "desert": ("orange", "yellow"),
    "snow": ("white",),
    "sunset": ("orange", "purple", "pink"),
    "hills": ("green", "teal"),
}
_RADII_PX: dict[int, dict[Size, float]] = {
    1: {"small": 15, "": 23, "large": 34},
    2: {"small": 12, "": 18, "large": 26},
    3: {"small": 10, "": 14, "large": 18},
}
_PLACES_PX = {
    "in the middle": (64, 64),
    "at the top": (64, 40),
    "at the bottom": (64, 88),
    "on the left": (40, 64),
    "on the right": (88, 64),
}
_ROWS_PX = {2: (34, 94), 3: (25, 64, 103)}
_JITTER_PX = 4


@dataclass(frozen=True)
class Thing:
    """One shape: its look, its centre and radius in px of a 128 px image, and its turn in degrees."""

    shape: str
    color: str
    size: Size
    x_px: float
    y_px: float
    radius_px: float
    turn: float

    @property
    def phrase(self) -> str:
        """As a caption names it, e.g. `a large red circle`."""
        words = " ".join(word for word in (self.size, self.color, self.shape) if word)
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Scene:
    """One to three things before a background, with the caption that tells them."""

    background: str
    things: tuple[Thing, ...]
    caption: str

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """The combinations of colour and shape in it."""
        return frozenset((thing.color, thing.shape) for thing in self.things)


def held_out(color: str, shape: str) -> bool:
    """Whether this combination is kept out of the images that show the second style: two shapes a colour."""
    return (COLORS.index(color) + 2 * SHAPES.index(shape)) % 5 == 0


def random_scene(seed: int, *, only_seen: bool = False, fillers: bool = True) -> Scene:
    """The scene of a seed.

    Args:
        seed: decides everything.
        only_seen: leave out the held-out combinations of colour and shape.
        fillers: let some captions begin with words that mean nothing here.
    """
    rng = random.Random(f"scene/{seed}")
    background = rng.choice(BACKGROUNDS)
    count = rng.choices((1, 2, 3), weights=(35, 45, 20))[0]
    looks = _random_looks(rng, count, background, only_seen=only_seen)
    sizes: list[Size] = [rng.choices(("small", "", "large"), weights=(3, 4, 3))[0] for _ in looks]
    upright = rng.random() < 0.5
    place = rng.choice(list(_PLACES_PX))
    centres = [_PLACES_PX[place]] if count == 1 else _line(count, upright=upright)
    things = tuple(
        Thing(
            shape=shape,
            color=color,
            size=size,
            x_px=x + rng.uniform(-_JITTER_PX, _JITTER_PX),
            y_px=y + rng.uniform(-_JITTER_PX, _JITTER_PX),
            radius_px=_RADII_PX[count][size] * rng.uniform(0.95, 1.05),
            turn=rng.uniform(-10, 10),
        )
        for (color, shape), size, (x, y) in zip(looks, sizes, centres, strict=True)
    )
    told = _told(rng, [thing.phrase for thing in things], place, upright=upright)
    caption = f"{_opening(rng, fillers=fillers)}{told} {background_phrase(background, rng)}"
    return Scene(background, things, caption)


def background_phrase(background: str, rng: random.Random) -> str:
    """How a caption tells the background, e.g. `on a cream background`."""
    plain = (f"on a {background} background", f"on a plain {background} background")
    return rng.choice(_BACKGROUND_PHRASES.get(background, plain))


def _random_looks(
    rng: random.Random, count: int, background: str, *, only_seen: bool
) -> list[tuple[str, str]]:
    """Colours and shapes of the things, all different."""
    hidden = _HARD_TO_SEE[background]
    looks: list[tuple[str, str]] = []
    while len(looks) < count:
        color, shape = rng.choice(COLORS), rng.choice(SHAPES)
        taken = any(color == other or shape == drawn for other, drawn in looks)
        if color not in hidden and not taken and not (only_seen and held_out(color, shape)):
            looks.append((color, shape))
    return looks


def _line(count: int, *, upright: bool) -> list[tuple[int, int]]:
    """Centres of things in a column (top to bottom) or a row (left to right)."""
    return [(64, step) if upright else (step, 64) for step in _ROWS_PX[count]]


def _told(rng: random.Random, phrases: Sequence[str], place: str, *, upright: bool) -> str:
    if len(phrases) == 1:
        return f"{phrases[0]} {place}"
    if len(phrases) == 3:
        return f"{phrases[0]}, {phrases[1]} and {phrases[2]} in a {'column' if upright else 'row'}"
    first, second = phrases
    forward = rng.random() < 0.6
    if upright:
        return f"{first} above {second}" if forward else f"{second} below {first}"
    return f"{first} to the left of {second}" if forward else f"{second} to the right of {first}"


def _opening(rng: random.Random, *, fillers: bool) -> str:
    kind = rng.random()
    if fillers and kind < 0.25:
        return f"{rng.choice(FILLERS)} style, "
    if kind < 0.35:
        return "a picture of "
    if kind < 0.42:
        return "there is "
    return ""

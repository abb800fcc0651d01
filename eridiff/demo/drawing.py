"""Scenes as pictures: `plain`, filled shapes by daylight, or `neon`, glowing outlines at night."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from eridiff.demo.scenes import Scene, Thing

Style = Literal["plain", "neon"]
Color = tuple[int, int, int]
Point = tuple[float, float]

SIDE_PX = 128
_OVERSAMPLING = 4
_OUTLINE_PX = 3.2

PALETTE: Mapping[str, Color] = {
    "red": (219, 50, 54),
    "orange": (243, 134, 34),
    "yellow": (250, 207, 60),
    "green": (64, 160, 78),
    "teal": (22, 160, 160),
    "blue": (44, 98, 214),
    "purple": (138, 58, 186),
    "pink": (244, 124, 178),
    "white": (250, 250, 248),
}
NEON: Mapping[str, Color] = {
    "red": (255, 48, 56),
    "orange": (255, 132, 24),
    "yellow": (255, 226, 64),
    "green": (60, 255, 96),
    "teal": (32, 240, 228),
    "blue": (56, 120, 255),
    "purple": (176, 70, 255),
    "pink": (255, 110, 196),
    "white": (244, 246, 255),
}
_SKIES: Mapping[str, tuple[Color, Color]] = {
    "cream": ((253, 247, 230), (244, 231, 204)),
    "mint": ((218, 244, 230), (186, 226, 207)),
    "lavender": ((231, 223, 248), (206, 195, 235)),
    "peach": ((255, 228, 210), (250, 203, 180)),
    "grey": ((229, 231, 234), (200, 204, 210)),
    "sky": ((150, 203, 246), (222, 240, 253)),
    "meadow": ((168, 214, 246), (232, 244, 250)),
    "sea": ((250, 226, 196), (253, 243, 224)),
    "desert": ((176, 214, 238), (250, 236, 208)),
    "snow": ((174, 200, 230), (222, 234, 246)),
    "sunset": ((120, 92, 168), (255, 196, 130)),
    "hills": ((250, 222, 190), (252, 240, 220)),
}
_GROUNDS: Mapping[str, tuple[Color, Color]] = {
    "meadow": ((160, 208, 122), (112, 176, 92)),
    "sea": ((96, 172, 204), (52, 122, 172)),
    "desert": ((236, 202, 146), (214, 170, 108)),
    "snow": ((248, 251, 254), (226, 236, 246)),
    "sunset": ((146, 86, 124), (104, 62, 108)),
    "hills": ((146, 190, 168), (88, 142, 132)),
}
_HORIZON_PX = 92


def draw(scene: Scene, style: Style) -> Image.Image:
    """The scene as a 128 px RGB image; the same scene gives the same pixels."""
    return _draw_plain(scene) if style == "plain" else _draw_neon(scene)


def _draw_plain(scene: Scene) -> Image.Image:
    image = _daylight(scene.background).copy()
    for thing in scene.things:
        mask = _mask(thing)
        shadow = ImageChops.offset(mask, 0, 3).filter(ImageFilter.GaussianBlur(2.5)).point(lambda v: v * 0.28)
        image.paste((48, 44, 66), (0, 0), shadow)
        image.paste(PALETTE[thing.color], (0, 0), mask)
    return image


def _draw_neon(scene: Scene) -> Image.Image:
    image = _night(scene.background).copy()
    for thing in scene.things:
        line = _outline(thing)
        near, far = line.filter(ImageFilter.GaussianBlur(2)), line.filter(ImageFilter.GaussianBlur(6))
        glow = ImageChops.add(near.point(lambda v: v * 0.65), far.point(lambda v: v * 1.0))
        color = Image.new("RGB", image.size, NEON[thing.color])
        lit = Image.composite(color, Image.new("RGB", image.size), ImageChops.add(line, glow))
        image = ImageChops.add(image, lit)
    return image


def _mask(thing: Thing) -> Image.Image:
    """The filled shape, 0 to 255, antialiased."""
    canvas, pen = _canvas()
    _SHAPES[thing.shape](pen, thing)
    return canvas.reduce(_OVERSAMPLING)


def _outline(thing: Thing) -> Image.Image:
    """A line along the inside of the shape's edge, 0 to 255, antialiased."""
    canvas, pen = _canvas()
    _SHAPES[thing.shape](pen, thing)
    reach = 2 * round(_OUTLINE_PX * _OVERSAMPLING / 2 / 2)
    small = canvas.reduce(2)
    inner = small.filter(ImageFilter.MinFilter(reach + 1))
    return ImageChops.subtract(small, inner).reduce(_OVERSAMPLING // 2)


def _canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("L", (SIDE_PX * _OVERSAMPLING, SIDE_PX * _OVERSAMPLING))
    return canvas, ImageDraw.Draw(canvas)


def _at(thing: Thing, points: list[Point]) -> list[Point]:
    """Points of the unit circle's scale, y down, turned and moved to the thing's place on the canvas."""
    cos, sin = math.cos(math.radians(thing.turn)), math.sin(math.radians(thing.turn))
    radius, scale = thing.radius_px, _OVERSAMPLING
    return [
        (
            (thing.x_px + radius * (x * cos - y * sin)) * scale,
            (thing.y_px + radius * (x * sin + y * cos)) * scale,
        )
        for x, y in points
    ]


def _polygon(points: list[Point]) -> Callable[[ImageDraw.ImageDraw, Thing], None]:
    return lambda pen, thing: pen.polygon(_at(thing, points), fill=255)


def _discs(discs: list[tuple[float, float, float]]) -> Callable[[ImageDraw.ImageDraw, Thing], None]:
    def fill(pen: ImageDraw.ImageDraw, thing: Thing) -> None:
        for x, y, radius in discs:
            _disc(pen, thing, x, y, radius, fill=255)

    return fill


def _disc(pen: ImageDraw.ImageDraw, thing: Thing, x: float, y: float, radius: float, *, fill: int) -> None:
    ((centre_x, centre_y),) = _at(thing, [(x, y)])
    reach = radius * thing.radius_px * _OVERSAMPLING
    pen.ellipse((centre_x - reach, centre_y - reach, centre_x + reach, centre_y + reach), fill=fill)


def _crescent(pen: ImageDraw.ImageDraw, thing: Thing) -> None:
    _disc(pen, thing, 0, 0, 1, fill=255)
    _disc(pen, thing, 0.48, -0.16, 0.82, fill=0)


def _cloud(pen: ImageDraw.ImageDraw, thing: Thing) -> None:
    _discs([(-0.58, 0.2, 0.42), (0.62, 0.24, 0.38), (-0.12, -0.12, 0.55), (0.36, 0, 0.44)])(pen, thing)
    pen.polygon(_at(thing, [(-0.58, 0.2), (0.62, 0.2), (0.62, 0.62), (-0.58, 0.62)]), fill=255)


def _ring_of_points(count: int, radii: tuple[float, ...], start: float) -> list[Point]:
    """Points on circles of the given radii in turn, clockwise from `start` degrees (0 is right, -90 up)."""
    angles = [math.radians(start + 360 * index / count) for index in range(count)]
    return [
        (radii[index % len(radii)] * math.cos(angle), radii[index % len(radii)] * math.sin(angle))
        for index, angle in enumerate(angles)
    ]


def _heart_points() -> list[Point]:
    angles = [2 * math.pi * step / 72 for step in range(72)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16 - 0.1,
        )
        for a in angles
    ]


_SHAPES: Mapping[str, Callable[[ImageDraw.ImageDraw, Thing], None]] = {
    "circle": _discs([(0, 0, 0.94)]),
    "square": _polygon([(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]),
    "triangle": _polygon([(0, -0.95), (1, 0.78), (-1, 0.78)]),
    "star": _polygon(_ring_of_points(10, (1.1, 0.46), -90)),
    "heart": _polygon(_heart_points()),
    "crescent": _crescent,
    "diamond": _polygon([(0, -1.12), (0.72, 0), (0, 1.12), (-0.72, 0)]),
    "hexagon": _polygon(_ring_of_points(6, (1,), 0)),
    "flower": _discs([*((0.56 * x, 0.56 * y, 0.44) for x, y in _ring_of_points(5, (1,), -90)), (0, 0, 0.5)]),
    "cloud": _cloud,
}


@cache
def _daylight(background: str) -> Image.Image:
    image = _gradient(*_SKIES[background])
    if background in _GROUNDS:
        image.paste(_gradient(*_GROUNDS[background], top_px=_HORIZON_PX), (0, 0), _ground_mask(background))
    return image


@cache
def _night(background: str) -> Image.Image:
    """A dark wash in the background's hue, with a faint line at the horizon where there is one."""
    sky = _SKIES[background][1]
    ground = _GROUNDS.get(background, (sky, sky))[1]
    top, bottom = _dark(ground, 18), _dark(ground, 42)
    image = _gradient(top, bottom)
    if background in _GROUNDS:
        mask = _ground_mask(background)
        edge = ImageChops.subtract(mask, ImageChops.offset(mask, 0, 1)).point(lambda v: v * 0.45)
        edge = ImageChops.add(edge, edge.filter(ImageFilter.GaussianBlur(2)))
        image.paste(_dark(ground, 190), (0, 0), edge)
    return image


def _dark(color: Color, brightest: int) -> Color:
    """The colour with its contrast between channels raised, scaled to a brightest channel."""
    low, high = min(color), max(color)
    spread = [0.25 + 0.75 * (value - low) / max(1, high - low) for value in color]
    red, green, blue = (round(brightest * value) for value in spread)
    return red, green, blue


@cache
def _ground_mask(background: str) -> Image.Image:
    """Where the ground is: flat for the sea, one hill or two for the others."""
    canvas, pen = _canvas()
    scale, side = _OVERSAMPLING, SIDE_PX * _OVERSAMPLING
    horizon = _HORIZON_PX * scale
    if background == "sea":
        pen.rectangle((0, horizon, side, side), fill=255)
    else:
        wide, high = {"meadow": (150, 40), "snow": (130, 44), "desert": (170, 30)}.get(background, (110, 50))
        for centre in (20, 112):
            box = (centre - wide / 1.6, _HORIZON_PX - 3, centre + wide / 1.6, _HORIZON_PX + 2 * high)
            pen.ellipse(tuple(value * scale for value in box), fill=255)
        pen.rectangle((0, horizon + 14 * scale, side, side), fill=255)
    return canvas.reduce(_OVERSAMPLING)


def _gradient(top: Color, bottom: Color, *, top_px: int = 0) -> Image.Image:
    """A vertical gradient from `top_px` to the lower edge, level above."""
    column = Image.new("RGB", (1, SIDE_PX))
    for y in range(SIDE_PX):
        share = max(0.0, (y - top_px) / (SIDE_PX - 1 - top_px))
        red, green, blue = (round(a + (b - a) * share) for a, b in zip(top, bottom, strict=True))
        column.putpixel((0, y), (red, green, blue))
    return column.resize((SIDE_PX, SIDE_PX))

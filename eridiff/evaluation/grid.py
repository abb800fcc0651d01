"""Labelled contact sheets: rows and columns of sampled images with wrapped prompts beside them.

The drawing knows nothing of prompts, seeds or LoRAs: an axis is a sequence of groups, a group has a label and
one label a line. `eridiff.evaluation.comparison` decides what lies on which axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from eridiff.evaluation.lettering import fit, font, line_height, spelled, text_width, wrap

PAPER = "#FBFAF8"
INK = "#1D1D1F"
MUTED = "#77757A"
HAIRLINE = "#E4E1DB"

MIN_TILE_PX = 224
MAX_TILE_PX = 640
MAX_TILES_WIDTH_PX = 4096


@dataclass(frozen=True)
class Group:
    """Neighbouring lines (rows or columns) under one label; an empty label takes no space."""

    label: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Captions:
    """Words around the tiles: a title, a line under it and a line at the foot."""

    title: str
    subtitle: str
    footer: str


@dataclass(frozen=True)
class Layout:
    """Where everything lies, in px; made by `measure`."""

    tile: tuple[int, int]
    margin: int
    group_gap: int
    body: int
    small: int
    title: int
    gutter: int
    row_label: int
    lefts: tuple[int, ...]
    tops: tuple[int, ...]
    header_top: int
    size: tuple[int, int]


def compose(
    tiles: Sequence[Sequence[Path]], rows: Sequence[Group], columns: Sequence[Group], captions: Captions
) -> Image.Image:
    """A contact sheet of image files.

    Args:
        tiles: One sequence a row line, one file a column line; all of one size.
        rows: Row groups; their members in order are the lines of `tiles`.
        columns: Column groups, likewise.
        captions: Title, subtitle and footer.

    Returns:
        An RGB image; tiles below 224 px are enlarged to it and those above 640 px reduced.

    Raises:
        ValueError: The tiles do not fill the axes.
    """
    heights, widths = _count(rows), _count(columns)
    if len(tiles) != heights or any(len(line) != widths for line in tiles) or not heights or not widths:
        raise ValueError(
            f"{heights} x {widths} lines need as many tiles, found {[len(line) for line in tiles]}"
        )
    with Image.open(tiles[0][0]) as first:
        layout = measure(first.size, rows, columns, captions)
    sheet = Image.new("RGB", layout.size, PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_captions(draw, layout, captions)
    _draw_column_labels(draw, layout, columns)
    _draw_row_labels(draw, layout, rows)
    corners = _rounded(layout.tile)
    for top, line in zip(layout.tops, tiles, strict=True):
        for left, path in zip(layout.lefts, line, strict=True):
            with Image.open(path) as image:
                tile = image.convert("RGB").resize(layout.tile, Image.Resampling.LANCZOS)
            sheet.paste(tile, (left, top), corners)
    return sheet


def measure(
    image_size: tuple[int, int], rows: Sequence[Group], columns: Sequence[Group], captions: Captions
) -> Layout:
    """The layout of a sheet whose images are `image_size` = (width, height) px."""
    num_columns = _count(columns)
    tile = _tile_size(image_size, num_columns)
    body = round(min(max(16.0, num_columns * tile[0] / 52), tile[0] / 9, 52.0))
    small, title = round(0.84 * body), round(1.9 * body)
    margin, gap = round(2.6 * body), max(6, round(0.028 * tile[0]))
    group_gap = 3 * gap
    gutter = _gutter(rows, body, tile[0])
    row_label = _row_label_width(rows, small)
    left = margin + gutter + row_label
    subtitle = line_height(body) if captions.subtitle else 0
    header_top = margin + line_height(title) + subtitle + round(1.2 * body)
    top = header_top + _header_height(columns, body, small)
    lefts = tuple(_lines(columns, left, tile[0], gap, group_gap))
    tops = tuple(_lines(rows, top, tile[1], gap, group_gap))
    foot = line_height(small) + round(1.1 * body) if captions.footer else 0
    right = max(lefts[-1] + tile[0], margin + _title_width(captions, title, body))
    return Layout(
        tile=tile,
        margin=margin,
        group_gap=group_gap,
        body=body,
        small=small,
        title=title,
        gutter=gutter,
        row_label=row_label,
        lefts=lefts,
        tops=tops,
        header_top=header_top,
        size=(right + margin, tops[-1] + tile[1] + foot + margin),
    )


def _tile_size(image_size: tuple[int, int], num_columns: int) -> tuple[int, int]:
    width, height = image_size
    wanted = min(max(width, MIN_TILE_PX), MAX_TILE_PX, max(MIN_TILE_PX, MAX_TILES_WIDTH_PX // num_columns))
    return wanted, max(1, round(height * wanted / width))


def _gutter(rows: Sequence[Group], body: int, tile_width: int) -> int:
    longest = max((text_width(spelled(group.label), body) for group in rows), default=0.0)
    if not longest:
        return 0
    return round(min(longest, max(13.0 * body, 0.72 * tile_width))) + _gutter_air(body)


def _row_label_width(rows: Sequence[Group], small: int) -> int:
    widest = max(text_width(spelled(member), small) for group in rows for member in group.members)
    return round(widest + 1.2 * small) if widest else 0


def _header_height(columns: Sequence[Group], body: int, small: int) -> int:
    groups = line_height(body) if any(group.label for group in columns) else 0
    members = line_height(small) if any(member for group in columns for member in group.members) else 0
    return groups + members + (round(0.55 * body) if groups or members else 0)


def _title_width(captions: Captions, title: int, body: int) -> int:
    # Only the title may widen a sheet, and not without end: the other lines are shortened.
    return min(round(text_width(spelled(captions.title), title)), 30 * body)


def _lines(groups: Sequence[Group], start: int, extent: int, gap: int, group_gap: int) -> Iterator[int]:
    position = start
    for index, group in enumerate(groups):
        position += group_gap - gap if index else 0
        for _ in group.members:
            yield position
            position += extent + gap


def _draw_captions(draw: ImageDraw.ImageDraw, at: Layout, captions: Captions) -> None:
    room = at.size[0] - 2 * at.margin
    below = at.margin + line_height(at.title)
    _write(draw, (at.margin, at.margin), captions.title, at.title, INK, room)
    _write(draw, (at.margin, below), captions.subtitle, at.body, MUTED, room)
    foot = at.size[1] - at.margin - at.small
    _write(draw, (at.margin, foot), captions.footer, at.small, MUTED, room)


def _draw_column_labels(draw: ImageDraw.ImageDraw, at: Layout, columns: Sequence[Group]) -> None:
    has_groups = any(group.label for group in columns)
    line = at.header_top + (line_height(at.body) if has_groups else 0)
    size, colour = (at.small, MUTED) if has_groups else (at.body, INK)
    position = 0
    for group in columns:
        lefts = at.lefts[position : position + len(group.members)]
        _write(draw, (lefts[0], at.header_top), group.label, at.body, INK, lefts[-1] + at.tile[0] - lefts[0])
        for left, member in zip(lefts, group.members, strict=True):
            _write(draw, (left, line), member, size, colour, at.tile[0])
        position += len(group.members)


def _draw_row_labels(draw: ImageDraw.ImageDraw, at: Layout, rows: Sequence[Group]) -> None:
    position, step = 0, line_height(at.body)
    for index, group in enumerate(rows):
        tops = at.tops[position : position + len(group.members)]
        if index:
            rule = tops[0] - at.group_gap // 2
            draw.line([(at.margin, rule), (at.lefts[-1] + at.tile[0], rule)], HAIRLINE, max(1, at.body // 16))
        room, max_lines = at.gutter - _gutter_air(at.body), max(1, (tops[-1] + at.tile[1] - tops[0]) // step)
        for number, words in enumerate(wrap(spelled(group.label), at.body, room, max_lines)):
            _write(draw, (at.margin, tops[0] + number * step), words, at.body, INK, room)
        for top, member in zip(tops, group.members, strict=True):
            _write(draw, (at.margin + at.gutter, top), member, at.small, MUTED, at.row_label)
        position += len(group.members)


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, colour: str, room: int
) -> None:
    """One line whose ascender touches `place`, shortened to `room` px."""
    if text:
        words = fit(spelled(text), size, room)
        draw.text((place[0], place[1] + round(0.86 * size)), words, colour, font(size, words), anchor="ls")


def _gutter_air(body: int) -> int:
    return round(1.6 * body)


def _rounded(tile: tuple[int, int]) -> Image.Image:
    scale, radius = 4, max(3, round(0.018 * min(tile)))
    mask = Image.new("L", (tile[0] * scale, tile[1] * scale), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), radius * scale, fill=255)
    return mask.resize(tile, Image.Resampling.LANCZOS)


def _count(groups: Sequence[Group]) -> int:
    return sum(len(group.members) for group in groups)

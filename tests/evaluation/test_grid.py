from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from eridiff.evaluation.grid import (
    MAX_TILE_PX,
    MAX_TILES_WIDTH_PX,
    MIN_TILE_PX,
    PAPER,
    Captions,
    Group,
    compose,
    measure,
)

WORDS = Captions("a run", "what it is", "how it was made")
COLOURS = ("red", "green", "blue", "gold", "purple", "teal")


def tiles(folder: Path, rows: int, columns: int, size: tuple[int, int]) -> list[list[Path]]:
    grid = []
    for row in range(rows):
        grid.append([folder / f"{row}-{column}.png" for column in range(columns)])
        for column, path in enumerate(grid[-1]):
            Image.new("RGB", size, COLOURS[(row * columns + column) % len(COLOURS)]).save(path)
    return grid


@pytest.mark.parametrize("size", [(128, 128), (1344, 768), (832, 1216), (64, 192)])
def test_every_tile_lies_in_its_place(tmp_path: Path, size: tuple[int, int]) -> None:
    rows = (Group("a prompt", ("seed 1", "seed 2")), Group("another prompt", ("seed 1", "seed 2")))
    columns = (Group("one", ("base", "LoRA")), Group("two", ("LoRA",)))
    paths = tiles(tmp_path, 4, 3, size)
    sheet = compose(paths, rows, columns, WORDS)
    layout = measure(size, rows, columns, WORDS)
    assert sheet.size == layout.size
    for line, top in zip(paths, layout.tops, strict=True):
        for path, left in zip(line, layout.lefts, strict=True):
            middle = left + layout.tile[0] // 2, top + layout.tile[1] // 2
            assert sheet.getpixel(middle) == Image.open(path).getpixel((0, 0))


def test_tiles_never_overlap_and_leave_a_margin() -> None:
    rows = tuple(Group(f"prompt {n}", ("",)) for n in range(3))
    columns = (Group("", ("base",)), Group("steps", tuple(f"step {n}" for n in range(8))))
    layout = measure((1024, 1024), rows, columns, WORDS)
    width, height = layout.tile
    assert all(right - left > width for left, right in zip(layout.lefts, layout.lefts[1:], strict=False))
    assert all(low - high > height for high, low in zip(layout.tops, layout.tops[1:], strict=False))
    assert layout.size[0] - layout.lefts[-1] - width >= layout.margin
    assert layout.lefts[0] >= layout.margin + layout.gutter


@pytest.mark.parametrize(
    ("size", "num_columns", "width"),
    [
        ((64, 64), 2, MIN_TILE_PX),
        ((512, 512), 2, 512),
        ((2048, 2048), 2, MAX_TILE_PX),
        ((1024, 1024), 10, MAX_TILES_WIDTH_PX // 10),
        ((1024, 512), 60, MIN_TILE_PX),
    ],
)
def test_tiles_have_a_size_to_look_at(size: tuple[int, int], num_columns: int, width: int) -> None:
    columns = (Group("", ("",) * num_columns),)
    layout = measure(size, (Group("prompt", ("",)),), columns, WORDS)
    assert layout.tile == (width, round(size[1] * width / size[0]))


def test_words_are_written(tmp_path: Path) -> None:
    rows, columns = (Group("a long prompt " * 20, ("",)),), (Group("", ("base",)),)
    sheet = compose(tiles(tmp_path, 1, 1, (256, 256)), rows, columns, WORDS)
    layout = measure((256, 256), rows, columns, WORDS)
    paper = Image.new("RGB", (1, 1), PAPER).getpixel((0, 0))

    def written(box: tuple[int, int, int, int]) -> bool:
        colours = sheet.crop(box).getcolors(1 << 20)
        assert colours is not None
        return any(colour != paper for _, colour in colours)

    gutter_end = layout.lefts[0] - layout.margin // 3
    assert written((0, layout.margin, sheet.width, layout.margin + layout.title))
    assert written((layout.margin, layout.tops[0], gutter_end, layout.tops[0] + layout.tile[1]))
    assert written((0, layout.tops[0] + layout.tile[1], sheet.width, sheet.height))
    assert not written((gutter_end, layout.tops[0], layout.lefts[0] - 1, layout.tops[0] + layout.tile[1]))


def test_missing_tiles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 x 1 lines"):
        compose(tiles(tmp_path, 1, 1, (64, 64)), (Group("p", ("", "")),), (Group("", ("base",)),), WORDS)

"""One page about a run that needs nothing beside it: no script, no other file; light or dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

from PIL import Image

from eridiff.evaluation.charts import Line, line_chart, smoothed

IMAGE_WIDTH_PX = 2160
SHOWN_ROWS = 12


@dataclass(frozen=True)
class Card:
    """A number that people look for first; `better` colours the note."""

    name: str
    value: str
    note: str = ""
    better: bool | None = None


@dataclass(frozen=True)
class Figure:
    """An image file with a caption."""

    caption: str
    path: Path


@dataclass(frozen=True)
class Table:
    """Rows under a heading; `numbers` are the columns to align right, `paths` those to set as code."""

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    numbers: frozenset[int] = frozenset()
    paths: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Chart:
    """Curves over one axis; a wide one has a line of the page to itself."""

    caption: str
    lines: tuple[Line, ...]
    x_name: str
    y_name: str
    wide: bool = False


@dataclass(frozen=True)
class Report:
    """All that the page says, in its order."""

    title: str
    subtitle: str
    cards: tuple[Card, ...]
    figures: tuple[Figure, ...]
    charts: tuple[Chart, ...]
    tables: tuple[Table, ...]
    recipe: str


def training_chart(steps: Sequence[float], losses: Sequence[float]) -> Chart:
    """The loss of each logged step and its moving average over a twentieth of them."""
    window = max(2, len(losses) // 20)
    raw = tuple(zip(steps, losses, strict=True))
    smooth = tuple(zip(steps, smoothed(losses, window), strict=True))
    lines = (Line("each line of the log", raw, "raw"), Line(f"average over {window}", smooth, "a"))
    return Chart("Training loss", lines, "step", "loss", wide=True)


def render(report: Report) -> str:
    """The page as HTML.

    Raises:
        OSError: an image cannot be read.
    """
    css = resources.files("eridiff.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    body = (
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="muted">{escape(report.subtitle)}</p>',
        _cards(report.cards),
        *(_figure(figure) for figure in report.figures),
        _charts(report.charts),
        *(_table(table) for table in report.tables),
        f"<h2>Recipe</h2><details><summary>As it was run, every default written out</summary>"
        f"<pre>{escape(report.recipe)}</pre></details>",
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title>\n<style>\n{css}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _cards(cards: Sequence[Card]) -> str:
    shown = "".join(
        f'<div class="card"><div class="name">{escape(card.name)}</div>'
        f'<div class="value">{escape(card.value)}</div>'
        f'<div class="note{_tone(card.better)}">{escape(card.note)}</div></div>'
        for card in cards
    )
    return f'<div class="cards">{shown}</div>' if cards else ""


def _tone(better: bool | None) -> str:
    return {None: "", True: " good", False: " bad"}[better]


def _figure(figure: Figure) -> str:
    return (
        f"<h2>{escape(figure.caption)}</h2><figure>"
        f'<img alt="{escape(figure.caption)}" src="{_data_uri(figure.path)}">'
        f'<figcaption class="muted">{escape(str(figure.path))}</figcaption></figure>'
    )


def _data_uri(path: Path) -> str:
    with Image.open(path) as image:
        shown = image.convert("RGB")
    if shown.width > IMAGE_WIDTH_PX:
        height = round(shown.height * IMAGE_WIDTH_PX / shown.width)
        shown = shown.resize((IMAGE_WIDTH_PX, height), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    shown.save(data, format="WEBP", quality=90, method=4)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def _charts(charts: Sequence[Chart]) -> str:
    shown = "".join(_chart(chart) for chart in charts)
    return f'<h2>Losses</h2><div class="charts">{shown}</div>' if charts else ""


def _chart(chart: Chart) -> str:
    width = 1000 if chart.wide else 490
    drawn = line_chart(chart.lines, x_name=chart.x_name, y_name=chart.y_name, width=width)
    style = ' class="wide"' if chart.wide else ""
    caption = escape(chart.caption)
    return f'<figure{style}><figcaption>{caption}</figcaption><div class="chart">{drawn}</div></figure>'


def _table(table: Table) -> str:
    head = "".join(_cell("th", name, table, index) for index, name in enumerate(table.columns))
    rows = [
        "<tr>" + "".join(_cell("td", value, table, index) for index, value in enumerate(row)) + "</tr>"
        for row in table.rows
    ]
    note = f'<p class="muted">{escape(table.note)}</p>' if table.note else ""
    heading = f"<h2>{escape(table.heading)}</h2>{note}"
    if not rows:
        return heading
    shown = _grid(head, rows[:SHOWN_ROWS])
    if len(rows) > SHOWN_ROWS:
        more = _grid(head, rows[SHOWN_ROWS:])
        shown += f"<details><summary>{len(rows) - SHOWN_ROWS} more rows</summary>{more}</details>"
    return heading + shown


def _grid(head: str, rows: Sequence[str]) -> str:
    thead = f"<thead><tr>{head}</tr></thead>"
    return f'<div class="scroll"><table>{thead}<tbody>{"".join(rows)}</tbody></table></div>'


def _cell(tag: str, value: str, table: Table, index: int) -> str:
    style = "number" if index in table.numbers else "path" if index in table.paths and tag == "td" else ""
    return f'<{tag} class="{style}">{escape(value)}</{tag}>' if style else f"<{tag}>{escape(value)}</{tag}>"

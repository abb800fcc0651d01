from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from eridiff.evaluation.report import Card, Chart, Figure, Line, Report, Table, render, training_chart

VOID = {"meta", "img"}


class Tags(HTMLParser):
    """Notes every address on a page and that its tags are nested rightly."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(report: Report) -> Tags:
    tags = Tags()
    tags.feed(render(report))
    tags.close()
    assert tags.open == []
    return tags


def whole(folder: Path) -> Report:
    Image.new("RGB", (3000, 1000), "red").save(folder / "grid.png")
    return Report(
        title="a run <script>alert(1)</script>",
        subtitle="two images & more",
        cards=(Card("hold-out loss", "0.2 → 0.1", "-50 %", better=True),),
        figures=(Figure("base and LoRA", folder / "grid.png"),),
        charts=(
            training_chart([1, 2, 3], [0.3, 0.2, 0.1]),
            Chart("by time", (Line("base", ((0.5, 1.0),), "b", marked=True),), "t", "loss"),
        ),
        tables=(
            Table("Quarantine", ("file", "reason"), tuple((f"{n}.jpg", "broken") for n in range(20))),
            Table("Empty", ("a",), ()),
        ),
        recipe="name: a <run>\n",
    )


def test_the_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    tags = parsed(whole(tmp_path))
    assert tags.addresses
    assert all(address.startswith("data:image/webp;base64,") for address in tags.addresses)
    html = render(whole(tmp_path))
    assert "@import" not in html
    assert "url(" not in html


def test_what_a_recipe_says_is_text_not_markup(tmp_path: Path) -> None:
    html = render(whole(tmp_path))
    assert "<script" not in html
    assert "a run <script>alert(1)</script>" in parsed(whole(tmp_path)).text
    assert "name: a <run>" in parsed(whole(tmp_path)).text


def test_every_row_is_there_and_long_tables_fold(tmp_path: Path) -> None:
    html = render(whole(tmp_path))
    assert all(f"{number}.jpg" in html for number in range(20))
    assert "8 more rows" in html


def test_a_report_of_nothing_is_a_page() -> None:
    tags = parsed(Report("empty", "", (), (), (), (), ""))
    assert "empty" in tags.text

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from eridiff.evaluation.charts import Line, line_chart, smoothed, ticks


@pytest.mark.parametrize(("low", "high"), [(0, 600), (0.1402, 0.2311), (-3, 5), (1e-7, 3e-7), (5, 5), (0, 0)])
def test_ticks_are_even_and_enclose(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert 2 <= len(found) <= 9
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    gaps = [b - a for a, b in pairwise(found)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps))


def test_ticks_are_round_numbers() -> None:
    assert ticks(0, 600, 5) == [0, 200, 400, 600]


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant() -> None:
    assert smoothed([4.0] * 9, 5) == pytest.approx([4.0] * 9)
    assert smoothed([1.0, 9.0], 10)[0] == 1.0


def test_a_chart_is_well_formed_and_points_lie_inside() -> None:
    lines = (
        Line("base <b>", ((0.0, 1.0), (1.0, 2.0)), "b", marked=True),
        Line("step 250", ((0.0, 0.5), (1.0, 3.0)), "a"),
    )
    drawn = ElementTree.fromstring(f"<div>{line_chart(lines, x_name='t', y_name='loss', width=500)}</div>")
    circles = list(drawn.iter("circle"))
    assert len(circles) == 2
    assert all(0 <= float(c.attrib["cx"]) <= 500 and 0 <= float(c.attrib["cy"]) <= 240 for c in circles)
    titles = [title.text for title in drawn.iter("title")]
    assert titles[0] == "base <b>: 1 at 0"
    assert len(list(drawn.iter("polyline"))) == 2

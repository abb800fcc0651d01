"""The loss curve as an image that a page can show by itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from eridiff.evaluation.charts import line_chart
from eridiff.evaluation.report import training_chart

WIDTH_PX = 900
STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif; }
text { fill: #6d6b70; } .rule { stroke: #e4e1db; }
.curve { fill: none; stroke-width: 2; } .curve.raw { stroke: #b9c6e6; stroke-width: 1; }
.curve.a { stroke: #2f5fd0; }
"""


def loss_curve(steps: Sequence[float], losses: Sequence[float]) -> str:
    """A data URI of the curve, raw and averaged, as SVG."""
    chart = training_chart(steps, losses)
    drawn = line_chart(chart.lines, x_name=chart.x_name, y_name=chart.y_name, width=WIDTH_PX)
    svg = drawn[drawn.index("<svg") :]
    whole = svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1).replace(
        ">", f"><style>{STYLE}</style>", 1
    )
    return "data:image/svg+xml;base64," + base64.b64encode(whole.encode()).decode()

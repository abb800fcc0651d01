"""Line charts as inline SVG, coloured by the page's own variables so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

HEIGHT = 240
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 38


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend, its points, and a CSS class (`raw`, `a`, `b`, ...)."""

    name: str
    points: tuple[tuple[float, float], ...]
    style: str
    marked: bool = False


def line_chart(lines: Sequence[Line], *, x_name: str, y_name: str, width: int = 500) -> str:
    """An SVG element, `width` px wide, with axes, a legend and the values of marked points on hovering."""
    points = [point for line in lines for point in line.points]
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), width // 90)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), 5)
    frame = _Frame(width, x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1])
    parts = [
        f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(y_name)} by {escape(x_name)}">'
    ]
    for value in y_ticks:
        y = frame.y(value)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>')
    for value in x_ticks:
        x = frame.x(value)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 18}" text-anchor="middle">{value:.6g}</text>')
    parts.append(f'<text x="{width - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_name)}</text>')
    parts += [_curve(line, frame) for line in lines]
    return f"{_legend(lines)}{''.join(parts)}</svg>"


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Exponential moving average over about `window` values, without a bias to zero at the start."""
    keep = 1 - 1 / max(1, window)
    total = weight = 0.0
    out = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        out.append(total / weight)
    return out


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers, evenly spaced, that enclose [low, high]: at least two, `about` so many."""
    if high <= low:
        pad = abs(low) * 0.5 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / max(1, about - 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    width: int
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)


def _curve(line: Line, frame: _Frame) -> str:
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
    drawn = f'<polyline class="curve {line.style}" points="{path}"/>'
    if not line.marked:
        return drawn
    return drawn + "".join(
        f'<circle class="mark {line.style}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="4">'
        f"<title>{escape(line.name)}: {y:.5g} at {x:g}</title></circle>"
        for x, y in line.points
    )


def _legend(lines: Sequence[Line]) -> str:
    keys = "".join(f'<span class="key {line.style}">{escape(line.name)}</span>' for line in lines)
    return f'<div class="legend">{keys}</div>' if len(lines) > 1 else ""

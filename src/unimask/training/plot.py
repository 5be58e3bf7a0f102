"""Curves over the steps of a training, and bars, as parts of a figure (`results/figure.py`)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from unimask.results.figure import (
    FAINT,
    Dot,
    Element,
    Line,
    Number,
    Part,
    Point,
    Rectangle,
    Text,
    text_width,
)

WIDTH, LEFT, RIGHT, PANEL, LINE = 760, 64, 16, 240, 18
COLORS = ("#6e7781", "#0969da", "#1a7f37", "#9a6700", "#bc4c00", "#cf222e", "#8250df", "#bf3989", "#57606a")
MOST_POINTS = 400  # of a curve; more are averaged


class Curve(NamedTuple):
    """A line through (step, value) points; a curve with a name stands in the legend."""

    points: Sequence[Point]
    color: str
    dots: bool  # whether each point is marked
    name: str = ""


def panel(title: str, curves: Sequence[Curve], steps: Number, width: int = WIDTH) -> Part:
    """Return curves in axes from 0 to `steps` and from 0 to a round number above the largest value.

    Values that are not finite, and negative ones (nothing was measured), are left out.
    """
    shown = [curve._replace(points=_thinned(_known(curve.points))) for curve in curves]
    highest = max((value for curve in shown for _, value in curve.points), default=0.0) or 1.0
    legend = _legend([curve for curve in shown if curve.name], width)
    top = 34 + legend.height
    right, bottom = width - RIGHT, top + PANEL
    values, rounds = _ticks(highest), _ticks(steps, 4 if width < 500 else 6)
    ceiling = values[-1] if values[-1] >= highest else values[-1] + values[1]
    elements: list[Element] = [Text((LEFT, 18), title, bold=True), *legend.elements]
    for value in sorted({*values, ceiling}):
        y = bottom - PANEL * value / ceiling
        elements += [
            Line(((LEFT, y), (right, y)), FAINT),
            Text((LEFT - 8, y + 4), _number(value, ceiling), "end"),
        ]
    for step in rounds:
        if step <= steps:
            x = LEFT + (right - LEFT) * step / steps
            elements.append(Text((x, bottom + 18), f"{step:,.10g}", "end" if x > right - 20 else "middle"))
    elements.append(Text(((LEFT + right) / 2, bottom + 34), "steps", "middle"))
    for curve in shown:
        places = [(LEFT + (right - LEFT) * s / steps, bottom - PANEL * v / ceiling) for s, v in curve.points]
        if len(places) > 1:
            elements.append(Line(places, curve.color, 1.8))
        if curve.dots or len(places) == 1:
            elements += [Dot(place, 3, curve.color) for place in places]
    return Part(elements, width, bottom + 44)


def _known(points: Sequence[Point]) -> list[Point]:
    return [(step, value) for step, value in points if math.isfinite(value) and value >= 0]


def _thinned(points: list[Point]) -> list[Point]:
    """Return the means of neighbours, so that at most `MOST_POINTS` are left."""
    size = -(-len(points) // MOST_POINTS)
    if size < 2:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _ticks(highest: Number, most: int = 5) -> list[Number]:
    """Return round numbers from 0 on, evenly spaced: about `most`, the last one near `highest`."""
    rough = highest / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [round(step * place, 12) for place in range(max(2, math.floor(highest / step + 1e-9) + 1))]


def _number(value: Number, ceiling: Number) -> str:
    if ceiling >= 0.001 or not value:
        return f"{value:g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def _legend(curves: Sequence[Curve], width: int) -> Part:
    """Return a colour and a name for each curve, in as many lines as they need."""
    elements: list[Element] = []
    x, y = float(LEFT), 38.0
    for curve in curves:
        room = 30 + text_width(curve.name)
        if x > LEFT and x + room > width:
            x, y = LEFT, y + LINE
        elements += [Rectangle(x, y - 6, 12, 4, curve.color), Text((x + 16, y), curve.name)]
        x += room
    return Part(elements, width, round(y - 38) + LINE)


def bars(
    title: str, names: Sequence[str], values: Sequence[Number], colors: Sequence[str], number: str
) -> Part:
    """Return a bar for each name, with its value written as the format `number` says."""
    highest, start = max(values, default=0.0) or 1.0, 340
    elements: list[Element] = [Text((LEFT, 12), title, bold=True)]
    for index, (name, value, color) in enumerate(zip(names, values, colors, strict=True)):
        y, length = 24 + LINE * index, (WIDTH - RIGHT - 60 - start) * value / highest
        elements.append(Text((start - 8, y + 11), name, "end"))
        elements.append(Rectangle(start, y, length, 13, color))
        elements.append(Text((start + length + 6, y + 11), number.format(value)))
    return Part(elements, WIDTH, 46 + LINE * len(names))

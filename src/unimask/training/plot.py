"""Curves over the steps of a training, and bars, as SVG."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, LEFT, RIGHT, TOP, PANEL, LINE = 760, 64, 16, 34, 240, 18
INK, FAINT = "#24292f", "#d0d7de"
COLORS = ("#6e7781", "#0969da", "#1a7f37", "#9a6700", "#bc4c00", "#cf222e", "#8250df", "#bf3989", "#24292f")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Curve(NamedTuple):
    """A line through (step, value) points."""

    points: Sequence[tuple[float, float]]
    color: str
    dots: bool  # whether each point is marked


class Part(NamedTuple):
    """A part of a drawing, as high as it needs; its top is at 0."""

    elements: list[str]
    height: int


def svg(parts: Sequence[Part]) -> str:
    """Return the drawing of some parts, one below the other."""
    lines, top = [], 0
    for part in parts:
        lines += [f'<g transform="translate(0 {top})">', *part.elements, "</g>"]
        top += part.height
    style = f'font-family="sans-serif" font-size="12" fill="{INK}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" {style}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *lines, "</svg>", ""])


def panel(title: str, curves: Sequence[Curve], steps: int | float) -> Part:
    """Return curves in axes from 0 to `steps` and from 0 to the largest value."""
    highest = max((value for curve in curves for _, value in curve.points), default=0.0) or 1.0
    bottom, width = TOP + PANEL, WIDTH - LEFT - RIGHT
    parts = [_title(title, TOP - 12)]
    for share in SHARES:
        x, y = LEFT + width * share, bottom - PANEL * share
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + width}" y2="{y:.1f}" stroke="{FAINT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share * highest:.3g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{share * steps:.0f}</text>')
    parts.append(f'<text x="{LEFT + width / 2}" y="{bottom + 34}" text-anchor="middle">steps</text>')
    for points, color, dots in curves:
        places = [(LEFT + width * step / steps, bottom - PANEL * value / highest) for step, value in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        if dots:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
    return Part(parts, bottom + 44)


def bars(
    title: str, names: Sequence[str], values: Sequence[float], colors: Sequence[str], number: str
) -> Part:
    """Return a bar for each name, with its value written as the format `number` says."""
    highest, start = max(values, default=0.0) or 1.0, 340
    parts = [_title(title, 12)]
    for index, (name, value, color) in enumerate(zip(names, values, colors, strict=True)):
        y, length = 24 + LINE * index, (WIDTH - RIGHT - 60 - start) * value / highest
        parts.append(f'<text x="{start - 8}" y="{y + 11}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{start}" y="{y}" width="{length:.1f}" height="13" fill="{color}"/>')
        parts.append(f'<text x="{start + length + 6:.1f}" y="{y + 11}">{number.format(value)}</text>')
    return Part(parts, 46 + LINE * len(names))


def _title(text: str, y: int) -> str:
    return f'<text x="{LEFT}" y="{y}" font-weight="600">{escape(text)}</text>'

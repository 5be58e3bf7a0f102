"""Figures of lines, boxes, dots and text, as SVG for pages and as images for folders."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from PIL import Image, ImageDraw

from unimask.results.fonts import label_font

INK, FAINT, LIGHT, PAPER = "#24292f", "#d0d7de", "#f0f2f5", "#ffffff"  # a page gives them colours of its own
FONT = 12  # pixels
_SCALE, _FINE = 2, 2  # pixels of the image per unit, and how much finer shapes are drawn first

_OPACITIES = {FAINT: 0.18, LIGHT: 0.06}

Number = int | float
Point = tuple[Number, Number]


class Line(NamedTuple):
    """A line through points."""

    points: Sequence[Point]
    color: str
    width: Number = 1.0


class Rectangle(NamedTuple):
    """A filled rectangle."""

    left: Number
    top: Number
    width: Number
    height: Number
    color: str


class Dot(NamedTuple):
    """A filled circle."""

    center: Point
    radius: Number
    color: str


class Text(NamedTuple):
    """A line of text. `place` is where it starts, its middle or its end, on the base line."""

    place: Point
    text: str
    anchor: str = "start"  # start, middle, end
    color: str = INK
    bold: bool = False
    upright: bool = False  # turned by a quarter: it is read from below


Element = Line | Rectangle | Dot | Text


class Part(NamedTuple):
    """A part of a figure; its upper left corner is at (0, 0)."""

    elements: list[Element]
    width: int
    height: int


def beside(parts: Sequence[Part], columns: int) -> Part:
    """Return parts in rows of so many, each as wide as the widest."""
    width = max((part.width for part in parts), default=0)
    elements: list[Element] = []
    top = 0
    for start in range(0, len(parts), columns):
        row = parts[start : start + columns]
        for place, part in enumerate(row):
            elements += [_moved(element, place * width, top) for element in part.elements]
        top += max(part.height for part in row)
    return Part(elements, width * min(columns, max(1, len(parts))), top)


def _moved(element: Element, x: Number, y: Number) -> Element:
    if isinstance(element, Line):
        return element._replace(points=[(left + x, top + y) for left, top in element.points])
    if isinstance(element, Rectangle):
        return element._replace(left=element.left + x, top=element.top + y)
    if isinstance(element, Dot):
        return element._replace(center=(element.center[0] + x, element.center[1] + y))
    return element._replace(place=(element.place[0] + x, element.place[1] + y))


# SVG


def as_svg(part: Part) -> str:
    """Return a figure as SVG. A page gives it colours of its own: it sets `color` and hides `.paper`."""
    style = f'font-family="sans-serif" font-size="{FONT}" color="{INK}" fill="currentColor"'
    size = f'viewBox="0 0 {part.width} {part.height}" width="{part.width}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    paper = f'<rect class="paper" width="100%" height="100%" fill="{PAPER}"/>'
    return "\n".join([head, paper, *map(_as_svg, part.elements), "</svg>", ""])


def _paint(attribute: str, color: str) -> str:
    if color in _OPACITIES:
        return f'{attribute}="currentColor" {attribute}-opacity="{_OPACITIES[color]}"'
    return f'{attribute}="{"currentColor" if color == INK else color}"'


def _as_svg(element: Element) -> str:
    if isinstance(element, Line):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in element.points)
        style = f'fill="none" stroke-linejoin="round" stroke-width="{element.width:g}"'
        return f'<polyline points="{points}" {style} {_paint("stroke", element.color)}/>'
    if isinstance(element, Rectangle):
        left, top, width, height, color = element
        size = f'width="{width:.1f}" height="{height:.1f}"'
        return f'<rect x="{left:.1f}" y="{top:.1f}" {size} {_paint("fill", color)}/>'
    if isinstance(element, Dot):
        (x, y), radius, color = element
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" {_paint("fill", color)}/>'
    x, y = element.place
    place = f'x="{x:.1f}" y="{y:.1f}"'
    if element.upright:
        place += f' transform="rotate(-90 {x:.1f} {y:.1f})"'
    anchor = "" if element.anchor == "start" else f' text-anchor="{element.anchor}"'
    weight = ' font-weight="600"' if element.bold else ""
    color = "" if element.color == INK else f" {_paint('fill', element.color)}"
    return f"<text {place}{anchor}{weight}{color}>{escape(element.text)}</text>"


# images


def as_image(part: Part) -> Image.Image:
    """Return a figure as an image, two pixels for each unit."""
    fine = _SCALE * _FINE
    canvas = Image.new("RGB", (part.width * fine, part.height * fine), PAPER)
    draw = ImageDraw.Draw(canvas)
    for element in part.elements:
        _draw_shape(draw, element, fine)
    picture = canvas.reduce(_FINE)
    for element in part.elements:
        if isinstance(element, Text):
            _draw_text(picture, element)
    return picture


def _draw_shape(draw: ImageDraw.ImageDraw, element: Element, scale: int) -> None:
    if isinstance(element, Line):
        points = [(x * scale, y * scale) for x, y in element.points]
        draw.line(points, fill=element.color, width=round(element.width * scale), joint="curve")
    elif isinstance(element, Rectangle):
        left, top = element.left * scale, element.top * scale
        right, bottom = left + element.width * scale - 1, top + element.height * scale - 1
        if right >= left and bottom >= top:
            draw.rectangle((left, top, right, bottom), fill=element.color)
    elif isinstance(element, Dot):
        (x, y), radius = element.center, element.radius
        corners = ((x - radius) * scale, (y - radius) * scale, (x + radius) * scale, (y + radius) * scale)
        draw.ellipse(corners, fill=element.color)


_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def _draw_text(picture: Image.Image, text: Text) -> None:
    font = label_font(FONT * _SCALE, text.text)
    x, y = text.place[0] * _SCALE, text.place[1] * _SCALE
    bold = 0.6 if text.bold else 0.0
    if not text.upright:
        draw = ImageDraw.Draw(picture)
        draw.text(
            (x, y), text.text, fill=text.color, font=font, anchor=_ANCHORS[text.anchor], stroke_width=bold
        )
        return
    room = (round(font.getlength(text.text)) + 4, 2 * FONT * _SCALE)
    mask = Image.new("L", room)
    base = round(1.5 * FONT * _SCALE)
    ImageDraw.Draw(mask).text((2, base), text.text, fill=255, font=font, anchor="ls", stroke_width=bold)
    mask = mask.transpose(Image.Transpose.ROTATE_90)
    before = {"start": room[0], "middle": room[0] // 2, "end": 0}[text.anchor]
    picture.paste(text.color, (round(x) - base, round(y) - before), mask)


def text_width(text: str) -> float:
    """Return the approximate width of a text, in units."""
    return float(label_font(FONT * _SCALE, text).getlength(text)) / _SCALE

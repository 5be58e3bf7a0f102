"""Segments drawn on their image: filled, outlined, and named where there is room."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int16, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from unimask.results.fonts import Font, drawable, label_font
from unimask.structures import Categories, Segments, Size

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom

FILL = 0.45  # share of the segment's colour inside it
CONTOUR = 0.9  # and on its contour
MOST_LABELS = 8  # of one category; with more instances the category is named in the legend instead
LABEL_OPACITY = 0.86


def overlay(
    image: UInt8[Tensor, "3 height width"], segments: Segments, categories: Categories, scores: bool = False
) -> Image.Image:
    """Return the image, at its own size, with its segments in the colours of their categories.

    Instances of one category differ in shade. Each segment is named at its most inner point, with its score
    if `scores`; categories whose segments are too small or too many for that stand in a legend.
    """
    pixels = image.cpu().permute(1, 2, 0).numpy()
    layers = segments.layers.cpu().numpy()
    labels = segments.labels.tolist()
    colors = segment_colors(labels, categories)
    painted = paint(pixels, layers, colors)
    picture = Image.fromarray(painted)
    texts = [drawable(short_name(categories.names[label]), label) for label in labels]
    if scores:
        texts = [f"{text} {score:.0%}" for text, score in zip(texts, segments.scores.tolist(), strict=True)]
    _Annotator(picture, colors).annotate(layers, labels, texts, categories)
    return picture


def short_name(name: str) -> str:
    """Return the first of the words for a category (`glass, drinking glass`), cut to 24 letters."""
    first = name.split(",")[0].strip() or name
    return first if len(first) <= 24 else f"{first[:21].rstrip()}..."


def segment_colors(labels: list[int], categories: Categories) -> UInt8[ndarray, "segments 3"]:
    """Return a colour for each segment: its category's, with hue and lightness varied among instances.

    The more instances a category has the wider its hues spread, so that neighbours in a crowd differ.
    """
    counts = np.bincount(labels, minlength=len(categories))
    seen = np.zeros(len(categories), dtype=int)
    colors = np.zeros((len(labels), 3))
    for number, label in enumerate(labels):
        lightness, chroma, hue = _to_polar(np.array(categories.colors[label]) / 255)
        if categories.is_thing[label] and counts[label] > 1:
            spread = np.radians(min(75, 12 + 3 * counts[label]))
            step = seen[label]
            hue += spread * (2 * ((0.5 + step * 0.6180339887) % 1) - 1)
            lightness = np.clip(lightness + 0.16 * ((0.5 + step * 0.7548776662) % 1 - 0.5), 0.3, 0.92)
            seen[label] += 1
        colors[number] = _from_polar(lightness, chroma, hue)
    return np.round(colors * 255).astype(np.uint8)


_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _to_polar(color: Float[ndarray, "3"]) -> tuple[float, float, float]:
    """Convert sRGB (0..1) to lightness, chroma and hue of the perceptual space Oklab (Ottosson, 2020)."""
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    lightness, a, b = _TO_LAB @ np.cbrt(_TO_CONES @ linear)
    return float(lightness), float(np.hypot(a, b)), float(np.arctan2(b, a))


def _from_polar(lightness: float, chroma: float, hue: float) -> Float[ndarray, "3"]:
    """Invert `_to_polar`, cut to what a screen can show."""
    lab = np.array([lightness, chroma * np.cos(hue), chroma * np.sin(hue)])
    linear = np.linalg.solve(_TO_CONES, np.linalg.solve(_TO_LAB, lab) ** 3).clip(0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def paint(
    pixels: UInt8[ndarray, "height width 3"],
    layers: Int16[ndarray, "layers height width"],
    colors: UInt8[ndarray, "segments 3"],
) -> UInt8[ndarray, "height width 3"]:
    """Return the pixels with each layer's segments filled and outlined; the first layer comes on top."""
    table = np.array([(0, 0, 0), *colors], dtype=np.float32)
    bright = np.array([(0, 0, 0), *map(_contour_color, colors)], dtype=np.float32)
    thickness = max(1, round((pixels.shape[0] * pixels.shape[1]) ** 0.5 / 800))
    painted = pixels.astype(np.float32)
    for layer in layers[::-1]:
        inside = layer > 0
        edge = contours(layer, thickness)
        painted[inside] += FILL * (table[layer[inside]] - painted[inside])
        painted[edge] += CONTOUR * (bright[layer[edge]] - painted[edge])
    return painted.round().clip(0, 255).astype(np.uint8)


def contours(layer: Int16[ndarray, "height width"], thickness: int) -> Bool[ndarray, "height width"]:
    """Return the pixels of segments at most `thickness` away from another or none; the border is no edge."""
    edge = np.zeros(layer.shape, dtype=bool)
    for step in range(1, thickness + 1):
        down = layer[step:] != layer[:-step]
        right = layer[:, step:] != layer[:, :-step]
        edge[step:] |= down
        edge[:-step] |= down
        edge[:, step:] |= right
        edge[:, :-step] |= right
    return edge & (layer > 0)


def _contour_color(color: UInt8[ndarray, "3"]) -> Float[ndarray, "3"]:
    lightness, chroma, hue = _to_polar(color / 255)
    return 255 * _from_polar(min(0.95, lightness + 0.15), chroma, hue)


def font_size(size: Size) -> int:
    """Return the height of names on an image of this size, in pixels; below 8 they cannot be read."""
    side = (size[0] * size[1]) ** 0.5
    return int(min(max(10, 0.022 * side), 0.08 * min(size) + 4))


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A line of the legend."""

    text: str
    color: Color


class _Annotator:
    """Writes names on an image, none over another."""

    def __init__(self, picture: Image.Image, colors: UInt8[ndarray, "segments 3"]) -> None:
        self._picture = picture
        self._colors = colors
        self._taken: list[Box] = []
        self._font_size = font_size((picture.height, picture.width))

    def annotate(
        self,
        layers: Int16[ndarray, "layers height width"],
        labels: list[int],
        texts: list[str],
        categories: Categories,
    ) -> None:
        """Name the segments, largest first, and list in a legend the categories that got no name."""
        if self._font_size < 8:
            return
        areas = np.bincount(layers.ravel(), minlength=len(labels) + 1)[1:]
        counts = np.bincount([label for label, area in zip(labels, areas) if area], minlength=len(categories))
        boxes = {
            index: (layer, box)
            for layer in layers
            for index, box in enumerate(ndimage.find_objects(layer, max_label=len(labels)))
            if box is not None
        }
        named: set[int] = set()
        for index in np.argsort(-areas, kind="stable").tolist():
            if index in boxes and counts[labels[index]] <= MOST_LABELS:
                layer, box = boxes[index]
                if self._name(layer[box] == index + 1, box, texts[index], index):
                    named.add(labels[index])
        missing = [
            label
            for label in np.argsort(-counts, kind="stable").tolist()
            if counts[label] and label not in named
        ]
        self._legend([self._entry(label, int(counts[label]), categories) for label in missing])

    @staticmethod
    def _entry(label: int, count: int, categories: Categories) -> _Entry:
        name = drawable(short_name(categories.names[label]), label)
        text = f"{name} ({count})" if categories.is_thing[label] and count > 1 else name
        return _Entry(text=text, color=categories.colors[label])

    def _name(
        self, mask: Bool[ndarray, "rows columns"], box: tuple[slice, slice], text: str, index: int
    ) -> bool:
        """Put a name into a segment, if its largest piece has room for it."""
        font = label_font(self._font_size, text)
        width, height = label_size(text, font)
        center = inner_point(mask, (height, width))
        if center is None:
            return False
        left = min(max(0, box[1].start + center[1] - width // 2), self._picture.width - width)
        top = min(max(0, box[0].start + center[0] - height // 2), self._picture.height - height)
        place = (left, top, left + width, top + height)
        if left < 0 or top < 0 or any(_overlap(place, other) for other in self._taken):
            return False
        red, green, blue = self._colors[index].tolist()
        draw_label(self._picture, place, text, font, (red, green, blue))
        self._taken.append(place)
        return True

    def _legend(self, entries: list[_Entry]) -> None:
        """Draw a box in the corner where it covers the fewest names."""
        line = round(self._font_size * 1.45)
        room = int(0.45 * self._picture.height) // line
        if len(entries) > room:
            more = len(entries) - room + 1
            entries = [*entries[: max(0, room - 1)], _Entry(text=f"+ {more} more", color=(128, 128, 128))]
        if not entries or room < 1:
            return
        margin, chip = line // 3, round(self._font_size * 0.8)
        fonts = [label_font(self._font_size, entry.text) for entry in entries]
        lengths = [font.getlength(entry.text) for font, entry in zip(fonts, entries, strict=True)]
        width = 3 * margin + chip + round(max(lengths))
        height = 2 * margin + line * len(entries)
        place = self._corner(width, height, margin)
        if place is None:
            return
        _blend_box(self._picture, place, (20, 20, 24), 0.72, line // 4)
        draw = ImageDraw.Draw(self._picture)
        for number, entry in enumerate(entries):
            middle = place[1] + margin + line * number + line / 2
            left = place[0] + margin
            _blend_box(
                self._picture,
                (left, round(middle - chip / 2), left + chip, round(middle - chip / 2) + chip),
                entry.color,
                1.0,
                max(1, chip // 4),
            )
            draw.text(
                (left + chip + margin, middle),
                entry.text,
                font=fonts[number],
                fill=(255, 255, 255),
                anchor="lm",
            )

    def _corner(self, width: int, height: int, margin: int) -> Box | None:
        right, bottom = self._picture.width - width - margin, self._picture.height - height - margin
        if right < margin or bottom < margin:
            return None
        corners = [(left, top) for top in (bottom, margin) for left in (margin, right)]
        boxes = [(left, top, left + width, top + height) for left, top in corners]
        return min(boxes, key=lambda box: sum(_overlap(box, other) for other in self._taken))


def inner_point(mask: Bool[ndarray, "rows columns"], room: Size) -> tuple[int, int] | None:
    """Return where in a mask a label of size `room` has the most space around it; None if too little."""
    step = max(1, max(mask.shape) // 192)
    small = np.pad(mask[::step, ::step], 1)
    pieces, count = ndimage.label(small)
    if count > 1:
        sizes = np.bincount(pieces.ravel())[1:]
        small = pieces == sizes.argmax() + 1
    if small.sum() * step * step < 1.2 * room[0] * room[1]:
        return None
    distance = ndimage.distance_transform_edt(small, sampling=(1 / room[0], 1 / room[1]))
    points = np.argwhere(distance >= 0.95 * distance.max())  # nearly equal: the most central of them
    center = np.argwhere(small).mean(axis=0)
    row, column = points[((points - center) ** 2).sum(axis=1).argmin()]
    return (int(row) - 1) * step, (int(column) - 1) * step


def label_size(text: str, font: Font) -> tuple[int, int]:
    """Return width and height of a name with the space around it."""
    _, top, _, bottom = font.getbbox("Ag")
    line = bottom - top
    return round(font.getlength(text) + 0.9 * line), round(1.45 * line)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _blend_box(picture: Image.Image, place: Box, color: Color, opacity: float, radius: int) -> None:
    """Draw a filled box with smooth round corners."""
    width, height = place[2] - place[0], place[3] - place[1]
    fine = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(fine).rounded_rectangle(
        (0, 0, 4 * width - 1, 4 * height - 1), radius=4 * radius, fill=round(255 * opacity)
    )
    picture.paste(color, place, fine.resize((width, height), Image.Resampling.BOX))


def draw_label(
    picture: Image.Image,
    place: Box,
    text: str,
    font: Font,
    color: Color,
) -> None:
    """Draw a name on a rounded box of a colour, in black or white, whichever is easier to read."""
    _blend_box(picture, place, color, LABEL_OPACITY, (place[3] - place[1]) // 3)
    lightness, _, _ = _to_polar(np.array(color) / 255)
    ink = (16, 16, 20) if lightness > 0.62 else (255, 255, 255)
    center = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
    ImageDraw.Draw(picture).text(center, text, font=font, fill=ink, anchor="mm")

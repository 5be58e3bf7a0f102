"""YOLO: a text file of labels per image, and the file that names the classes."""

from collections.abc import Sequence

import yaml

from unimask.ops.outlines import one_ring
from unimask.results.found import Polygons
from unimask.structures import Categories, Size


def as_yolo(labels: Sequence[int], polygons: Sequence[Polygons], size: Size) -> str:
    """Return the text of a label file: a line `label x1 y1 x2 y2 ...` per segment.

    Coordinates are shares of width and height. The format has neither holes nor parts: they are joined by
    bridges without width.
    """
    height, width = size
    lines = []
    for label, outline in zip(labels, polygons, strict=True):
        ring = one_ring([ring for part in outline for ring in part]) / (width, height)
        lines.append(_line(label, ring.ravel().tolist()))
    return "".join(lines)


def as_yolo_boxes(labels: Sequence[int], boxes: Sequence[Sequence[float]], size: Size) -> str:
    """Return the text of a label file: a line `label x y width height` per box (left, top, right, bottom).

    x and y are the centre; all are shares of width and height of the image.
    """
    height, width = size
    lines = []
    for label, (left, top, right, bottom) in zip(labels, boxes, strict=True):
        center = ((left + right) / 2 / width, (top + bottom) / 2 / height)
        lines.append(_line(label, [*center, (right - left) / width, (bottom - top) / height]))
    return "".join(lines)


def yolo_data(categories: Categories) -> str:
    """Return the text of the `data.yaml` beside `labels/` and `images/`."""
    content = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(categories.names))}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _line(label: int, numbers: Sequence[float]) -> str:
    return f"{label} {' '.join(f'{number:.8g}' for number in numbers)}\n"

"""Boxes of tiles and of segments: which lie near each other, and how much they overlap."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from unimask.inference.tiles import Tile
from unimask.structures import Size

Box = tuple[int, int, int, int]  # top, bottom, left, right; in pixels of the image, ends exclusive


class BoxIndex:
    """Boxes by the cells of a coarse grid that they touch: finds those near another box."""

    def __init__(self, cell: int) -> None:
        self._cell = cell
        self._numbers: defaultdict[tuple[int, int], list[int]] = defaultdict(list)

    def add(self, number: int, box: Box) -> None:
        """Keep a box under a number."""
        for cell in self._cells(box):
            self._numbers[cell].append(number)

    def near(self, box: Box) -> Int64[ndarray, " boxes"]:
        """Return the numbers of all boxes that share a cell with this one, rising."""
        found = {number for cell in self._cells(box) for number in self._numbers.get(cell, ())}
        return np.array(sorted(found), dtype=np.int64)

    def _cells(self, box: Box) -> Iterator[tuple[int, int]]:
        top, bottom, left, right = box
        for row in range(top // self._cell, (bottom - 1) // self._cell + 1):
            for column in range(left // self._cell, (right - 1) // self._cell + 1):
                yield row, column


def around(boxes: Sequence[Box]) -> Box:
    """Return the box around boxes."""
    edges = np.array(boxes)
    (top, _, left, _), (_, bottom, _, right) = edges.min(axis=0).tolist(), edges.max(axis=0).tolist()
    return top, bottom, left, right


def edges_of(tiles: Sequence[Tile]) -> Int64[ndarray, "tiles 4"]:
    """Return the windows of tiles as boxes."""
    windows = [tile.window for tile in tiles]
    edges = [[rows.start, rows.stop, columns.start, columns.stop] for rows, columns in windows]
    return np.array(edges, dtype=np.int64).reshape(-1, 4)


def seeing_whole(
    box: Int64[ndarray, "4"], edges: Int64[ndarray, "tiles 4"], size: Size
) -> Bool[ndarray, " tiles"]:
    """Return which tiles hold the whole box: it touches none of their sides but those of the image."""
    top, bottom, left, right = edges.T
    return (
        ((top < box[0]) | (top == 0))
        & ((bottom > box[1]) | (bottom == size[0]))
        & ((left < box[2]) | (left == 0))
        & ((right > box[3]) | (right == size[1]))
    )


def box_iou(box: Int64[ndarray, "4"], boxes: Int64[ndarray, "count 4"]) -> ndarray:
    """Return the IoU of a box with others."""
    top, bottom, left, right = boxes.T
    height = (np.minimum(bottom, box[1]) - np.maximum(top, box[0])).clip(0)
    width = (np.minimum(right, box[3]) - np.maximum(left, box[2])).clip(0)
    both = height * width
    all_areas = (bottom - top) * (right - left)
    iou: ndarray = both / (all_areas + (box[1] - box[0]) * (box[3] - box[2]) - both)
    return iou


def shared_pixels(box: Box, mask: ndarray, other_box: Box, other_mask: ndarray) -> int:
    """Return how many pixels two masks share."""
    top, bottom = max(box[0], other_box[0]), min(box[1], other_box[1])
    left, right = max(box[2], other_box[2]), min(box[3], other_box[3])
    if top >= bottom or left >= right:
        return 0
    here = mask[top - box[0] : bottom - box[0], left - box[2] : right - box[2]]
    there = other_mask[top - other_box[0] : bottom - other_box[0], left - other_box[2] : right - other_box[2]]
    return int((here & there).sum())

"""Exact outlines of masks: polygons along the edges of the pixels, neither smoothed nor simplified."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage

Ring = Float[ndarray, "_points 2"]
"""The corners (x, y) of a closed polygon, in pixels; the last is connected to the first."""

_RIGHT, _DOWN, _LEFT, _UP = range(4)  # directions, each a right turn after the one before
_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])


def outlines(mask: Bool[ndarray, "height width"]) -> list[list[Ring]]:
    """Return, for each 4-connected part of the mask, its outer ring followed by the rings of its holes.

    Outer rings run clockwise (with y pointing down), rings of holes counterclockwise. No ring crosses or
    touches itself, so each part is a valid polygon; different rings may touch at corners.
    """
    parts, count = ndimage.label(mask)
    found: list[list[Ring]] = [[] for _ in range(count)]
    for closed, (row, column) in _rings(mask):
        group = found[parts[row, column] - 1]
        for ring in _split(closed):
            group.insert(0 if signed_area(ring) > 0 else len(group), ring)
    return found


def _split(ring: Ring) -> Iterator[Ring]:
    """Split a ring that touches itself at corners into rings that do not, and yield them."""
    corners: list[tuple[float, float]] = []
    places: dict[tuple[float, float], int] = {}
    for x, y in ring.tolist():
        if (x, y) in places:
            start = places[x, y]
            yield np.array(corners[start:], dtype=np.float64)
            for corner in corners[start:]:
                del places[corner]
            del corners[start:]
        places[x, y] = len(corners)
        corners.append((x, y))
    yield np.array(corners, dtype=np.float64)


def signed_area(ring: Ring) -> float:
    """Return the area in square pixels: positive if the ring runs clockwise (with y pointing down)."""
    x, y = ring[:, 0], ring[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def one_ring(part: list[Ring]) -> Ring:
    """Return the rings of a part of a mask as a single ring, connected by bridges of width 0.

    For formats without holes. Each ring is connected, from its first corner, to the nearest corner of the
    rings before it.
    """
    joined = part[0]
    for ring in part[1:]:
        place = int(((joined - ring[0]) ** 2).sum(axis=1).argmin())
        joined = np.concatenate([joined[: place + 1], ring, ring[:1], joined[place:]])
    return joined


def _rings(mask: Bool[ndarray, "height width"]) -> Iterator[tuple[Ring, tuple[int, int]]]:
    """Yield each closed ring, and a pixel (row, column) of the mask next to it."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # direction of a side -> the neighbour across it, and the corner of the pixel where the side begins
    sides = {
        _RIGHT: (padded[:-2, 1:-1], (0, 0)),
        _DOWN: (padded[1:-1, 2:], (1, 0)),
        _LEFT: (padded[2:, 1:-1], (1, 1)),
        _UP: (padded[1:-1, :-2], (0, 1)),
    }
    edges: dict[tuple[int, int, int], tuple[int, int]] = {}  # (x, y, direction) of a side -> its pixel
    for direction, (neighbour, (x, y)) in sides.items():
        rows, columns = np.nonzero(inside & ~neighbour)
        keys = zip((columns + x).tolist(), (rows + y).tolist(), strict=True)
        pixels = zip(rows.tolist(), columns.tolist(), strict=True)
        edges.update({(*key, direction): pixel for key, pixel in zip(keys, pixels, strict=True)})
    while edges:
        (x, y, direction), pixel = next(iter(edges.items()))
        yield _follow(edges, x, y, direction), pixel


def _follow(edges: dict[tuple[int, int, int], tuple[int, int]], x: int, y: int, direction: int) -> Ring:
    """Return the ring that starts with a side, and remove its sides from `edges`; right turns come first."""
    start, corners = (x, y, direction), []
    while True:
        x, y = x + int(_STEPS[direction, 0]), y + int(_STEPS[direction, 1])
        turns = ((direction + 1) % 4, direction, (direction + 3) % 4)
        following = next(turned for turned in turns if (x, y, turned) in edges)
        if following != direction:
            corners.append((x, y))
        del edges[x, y, following]
        if (x, y, following) == start:
            return np.array(corners, dtype=np.float64)
        direction = following

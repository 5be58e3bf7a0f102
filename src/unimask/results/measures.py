"""Measures of each segment: area, centroid, perimeter, brightness; in bounded memory."""

import math

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

STRIP = 2**22
"""About so many pixels are measured at a time."""

MEASURES = (
    "area",
    "centroid_x",
    "centroid_y",
    "perimeter",
    "mean_intensity",
    "mean_red",
    "mean_green",
    "mean_blue",
)


class Measures:
    """Sums over the pixels of the segments of an id map, which add up over its rows.

    Numbers are 1..`count`; 0 is none. Rows are given from the top on, a strip at a time, so a map may be
    larger than memory.
    """

    def __init__(self, count: int, width: int) -> None:
        self._count = count
        self._area = np.zeros(count + 1, dtype=np.int64)
        self._places = np.zeros((2, count + 1))  # sums of x and y
        self._colors = np.zeros((3, count + 1))
        self._crossings = np.zeros(count + 1)  # of lines in four directions, times their distance
        self._above = np.zeros(width + 2, dtype=np.int64)  # the last row, with a margin of zeros
        self._rows = 0

    def add(self, ids: Int[ndarray, "rows width"], image: UInt8[ndarray, "3 rows width"]) -> None:
        """Count the next rows of the map, and the pixels of the image there."""
        step = max(1, STRIP // max(1, ids.shape[1]))
        for top in range(0, len(ids), step):
            self._add(ids[top : top + step], image[:, top : top + step])

    def _add(self, ids: Int[ndarray, "rows width"], image: UInt8[ndarray, "3 rows width"]) -> None:
        rows, columns = np.nonzero(ids)
        numbers = ids[rows, columns]
        self._area += self._sums(numbers)
        self._places[0] += self._sums(numbers, columns + 0.5)
        self._places[1] += self._sums(numbers, rows + (self._rows + 0.5))
        for total, channel in zip(self._colors, image, strict=True):
            total += self._sums(numbers, channel[rows, columns])
        padded = np.pad(ids, ((0, 0), (1, 1)))
        self._cross(padded[:, :-1], padded[:, 1:], 1.0)
        self._cross_rows(np.concatenate([self._above[None].astype(ids.dtype), padded]))
        self._above = padded[-1]
        self._rows += len(ids)

    def table(self) -> Float[ndarray, "measures segments"]:
        """Return a row for each of `MEASURES`, after the last strip, with a column for each number from 1 on.

        Lengths are in pixels of the image, whose upper left corner is (0, 0) and whose first pixel has its
        centre at (0.5, 0.5). The perimeter is Crofton's: lines in four directions cut the outline, and the
        number of cuts tells its length, which follows slanted and round outlines where counting the edges of
        pixels is up to 27 % too long (scikit-image's `perimeter_crofton`; like there, the border of the image
        counts as outline). Intensities are means of 8-bit values, 0 to 255; `mean_intensity` is that of the
        three channels. A segment without pixels has an area of 0 and NaN for the rest.
        """
        self._cross_rows(np.stack([self._above, np.zeros_like(self._above)]))
        self._above = np.zeros_like(self._above)
        area = self._area[1:].astype(np.float64)
        some = np.where(area > 0, area, np.nan)
        x, y = self._places[:, 1:] / some
        colors = self._colors[:, 1:] / some
        perimeter = math.pi / 8 * self._crossings[1:] * (some / some)
        return np.stack([area, x, y, perimeter, colors.mean(axis=0), *colors])

    def _sums(self, numbers: ndarray, weights: ndarray | None = None) -> ndarray:
        return np.bincount(numbers, weights, minlength=self._count + 1)

    def _cross_rows(self, rows: ndarray) -> None:
        """Count what lines between neighbouring rows cut: downwards, and along both diagonals."""
        upper, lower = rows[:-1], rows[1:]
        self._cross(upper, lower, 1.0)
        self._cross(upper[:, :-1], lower[:, 1:], math.sqrt(0.5))
        self._cross(upper[:, 1:], lower[:, :-1], math.sqrt(0.5))

    def _cross(self, one: ndarray, other: ndarray, distance: float) -> None:
        """Count where lines from pixel to pixel enter or leave a segment; they lie `distance` apart."""
        cut = one != other
        self._crossings += distance * (self._sums(one[cut]) + self._sums(other[cut]))


def measure_layers(
    layers: Int[ndarray, "layers height width"], image: UInt8[ndarray, "3 height width"], count: int
) -> Float[ndarray, "measures segments"]:
    """Return `Measures.table` of segments that lie in layers, each wholly in one, as in `Segments`."""
    whole = np.full((len(MEASURES), count), np.nan)
    whole[0] = 0
    for layer in layers:
        measures = Measures(count, layer.shape[1])
        measures.add(layer, image)
        table = measures.table()
        there = table[0] > 0
        whole[:, there] = table[:, there]
    return whole


def measure_boxes(
    boxes: Float[ndarray, "boxes 4"], image: UInt8[ndarray, "3 height width"]
) -> Float[ndarray, "measures boxes"]:
    """Return the same measures of boxes (left, top, right, bottom).

    Intensities are those of pixels whose centres lie in the box; NaN where there is none.
    """
    left, top, right, bottom = boxes.T.astype(np.float64)
    width, height = right - left, bottom - top
    colors = np.full((3, len(boxes)), np.nan)
    corners = np.ceil(boxes - 0.5).clip(min=0).astype(int)  # of the pixels from the first to after the last
    for index, (first, upper, last, lower) in enumerate(corners.tolist()):
        window = image[:, upper:lower, first:last]
        if window.size:
            colors[:, index] = window.mean(axis=(1, 2))
    geometry = (width * height, (left + right) / 2, (top + bottom) / 2, 2 * (width + height))
    return np.stack([*geometry, colors.mean(axis=0), *colors])

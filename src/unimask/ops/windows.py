"""`Placement.restore` for one window of the image at a time, directly from maps at their own stride.

Bilinear resizing is separable into rows and columns, so a window of the restored maps is the result of two
small matrix products with the few cells that it depends on; no map of the image's size is needed in between.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unimask.ops.dispatch import multiply
from unimask.structures import Placement, Size

ELEMENTS_AT_ONCE = 2**21  # of a tensor with one value per query (or class) and pixel: 8 MiB in float32
BLOCK = 128  # outputs per matrix: few, so that it has few columns and wastes little on zeros


@dataclass(frozen=True, kw_only=True)
class Taps:
    """A resize along one axis: the inputs of each output, and their weights, which may be 0.

    Neither the first nor the last input of an output ever decreases from one output to the next.
    """

    index: Int64[Tensor, "outputs taps"]
    weight: Float[Tensor, "outputs taps"]

    @cached_property
    def _ends(self) -> tuple[list[int], list[int]]:
        """Return the first and the last input of each output."""
        return self.index.amin(dim=1).tolist(), self.index.amax(dim=1).tolist()

    @cached_property
    def _blocks(self) -> list[Float[Tensor, "outputs inputs"]]:
        """Return the weight matrix of each `BLOCK` outputs, over the range of inputs that they depend on."""
        blocks = []
        for begin in range(0, len(self.index), BLOCK):
            index, weight = self.index[begin : begin + BLOCK], self.weight[begin : begin + BLOCK]
            first, last = self.first(begin, begin + len(index))
            blocks.append(torch.zeros(len(index), last - first).scatter_add_(1, index - first, weight))
        return blocks

    def first(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range (first, last + 1) of inputs that the outputs start..stop - 1 depend on."""
        lowest, highest = self._ends
        return lowest[start], highest[stop - 1] + 1

    def matrices(self, start: int, stop: int) -> Iterator[tuple[slice, slice, Float[Tensor, "some inputs"]]]:
        """Yield (outputs, inputs, weights) of the outputs start..stop - 1, at most `BLOCK` outputs at a time.

        Both ranges are slices: outputs are counted from `start`, inputs from the start of `first(start,
        stop)`.
        """
        low, _ = self.first(start, stop)
        for number in range(start // BLOCK, (stop - 1) // BLOCK + 1):
            origin = number * BLOCK
            begin, end = max(start, origin), min(stop, origin + BLOCK)
            first, last = self.first(begin, end)
            shift = self.first(origin, origin + 1)[0]
            weights = self._blocks[number][begin - origin : end - origin, first - shift : last - shift]
            yield slice(begin - start, end - start), slice(first - low, last - low), weights

    def reach(self, low: int, high: int) -> tuple[int, int]:
        """Return the range of outputs that depend on any of the inputs low..high - 1; it may be empty."""
        start = int((self.index.amax(dim=1) < low).sum())
        stop = int((self.index.amin(dim=1) < high).sum())
        return start, max(start, stop)


def bilinear_taps(inputs: int, outputs: int) -> Taps:
    """Return the two taps of each output of a bilinear resize, as in `interpolate(align_corners=False)`."""
    step = torch.full((), inputs / outputs, dtype=torch.float32)
    position = ((torch.arange(outputs, dtype=torch.float32) + 0.5) * step - 0.5).clamp_min(0)
    low = position.long().clamp_max(inputs - 1)
    high = (low + 1).clamp_max(inputs - 1)
    share = position - low
    return Taps(index=torch.stack([low, high], dim=1), weight=torch.stack([1 - share, share], dim=1))


def chain(first: Taps, second: Taps) -> Taps:
    """Return the taps of two resizes one after the other; `second` may crop the last outputs of `first`."""
    index = first.index[second.index].flatten(1)
    weight = (first.weight[second.index] * second.weight[:, :, None]).flatten(1)
    return Taps(index=index, weight=weight)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """A resize of maps that is computed window by window, with taps for rows and for columns."""

    rows: Taps
    columns: Taps

    @property
    def size(self) -> Size:
        """The (height, width) of the whole output."""
        return self.rows.index.shape[0], self.columns.index.shape[0]

    def tiles(self, side: int) -> Iterator[tuple[slice, slice]]:
        """Yield windows of at most `side` x `side` pixels that cover the output once, row by row."""
        height, width = self.size
        for top in range(0, height, side):
            for left in range(0, width, side):
                yield slice(top, min(top + side, height)), slice(left, min(left + side, width))

    def source(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        """Return the window of the input that a window of the output depends on."""
        return slice(*self.rows.first(rows.start, rows.stop)), slice(
            *self.columns.first(columns.start, columns.stop)
        )

    def resize(
        self, maps: Float[Tensor, "maps input_rows input_columns"], rows: slice, columns: slice
    ) -> Float[Tensor, "maps rows columns"]:
        """Return the window of the output, from `maps` cropped to `source(rows, columns)`."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        wide = maps.new_empty((len(maps), maps.shape[1], width))
        for outputs, inputs, weights in self.columns.matrices(columns.start, columns.stop):
            multiply(maps[:, :, inputs], weights.T.to(maps.device), wide[:, :, outputs])
        resized = maps.new_empty((len(maps), height, width))
        for outputs, inputs, weights in self.rows.matrices(rows.start, rows.stop):
            multiply(weights.to(maps.device), wide[:, inputs], resized[:, outputs])
        return resized

    def reach(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        """Return the window of the output that depends on a window of the input."""
        return slice(*self.rows.reach(rows.start, rows.stop)), slice(
            *self.columns.reach(columns.start, columns.stop)
        )


def side_for(depth: int) -> int:
    """Return the side of a square window with `ELEMENTS_AT_ONCE` values, `depth` per pixel; at least 16."""
    return max(16, int((ELEMENTS_AT_ONCE / depth) ** 0.5))


def to_canvas(placement: Placement, size: Size) -> Windows:
    """Return the bilinear resize from maps of `size` that cover the canvas to the size of the canvas."""
    rows, columns = (bilinear_taps(size[axis], placement.canvas[axis]) for axis in (0, 1))
    return Windows(rows=rows, columns=columns)


def from_canvas(placement: Placement) -> Windows:
    """Return the resize from the canvas to the image: padding is cropped, the rest resized bilinearly."""
    rows, columns = (bilinear_taps(placement.resized[axis], placement.original[axis]) for axis in (0, 1))
    return Windows(rows=rows, columns=columns)


def restoration(placement: Placement, size: Size) -> Windows:
    """Return `placement.restore` of maps of `size` as one resize: `to_canvas`, then `from_canvas`."""
    first, second = to_canvas(placement, size), from_canvas(placement)
    return Windows(rows=chain(first.rows, second.rows), columns=chain(first.columns, second.columns))

"""Images seen tile by tile: where the tiles lie, and which segments of two tiles are the same.

For images with more objects than a model has queries, or larger than what it was trained on. What the
tiles together say: `inference/stitching.py`.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Int64
from torch import Tensor

from unimask.config.images import Tiles, Whole
from unimask.structures import Segments, Size

SAME = 0.5  # IoU, where both tiles see, from which on two instances are one
SEEN = 0.5  # share of a segment that must be left where its tiles decide


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of an image. `window` is what the model sees; the `core`s of all tiles make up the image."""

    window: tuple[slice, slice]  # rows, columns of the image
    core: tuple[slice, slice]  # the part of the window where this tile decides

    @property
    def size(self) -> Size:
        """(height, width) of the window."""
        rows, columns = self.window
        return rows.stop - rows.start, columns.stop - columns.start


def tiles_of(size: Size, view: Whole | Tiles) -> list[Tile]:
    """Return the tiles in which an image of `size` is seen, row by row; seen whole it is one tile."""
    return grid(size, view.size, view.overlap) if isinstance(view, Tiles) else whole(size)


def whole(size: Size) -> list[Tile]:
    """Return the image as one tile."""
    everything = (slice(0, size[0]), slice(0, size[1]))
    return [Tile(window=everything, core=everything)]


def grid(size: Size, side: int, overlap: int) -> list[Tile]:
    """Return square tiles of `side` pixels, evenly spread, neighbours sharing at least `overlap` pixels.

    Neighbours meet in the middle of what they share. A side of the image that is no longer than a tile is
    covered by one.
    """
    rows, columns = (_spread(length, side, overlap) for length in size)
    return [
        Tile(window=(window_rows, window_columns), core=(core_rows, core_columns))
        for window_rows, core_rows in rows
        for window_columns, core_columns in columns
    ]


def _spread(length: int, side: int, overlap: int) -> list[tuple[slice, slice]]:
    """Return windows and cores along one side of the image."""
    if length <= side:
        return [(slice(0, length), slice(0, length))]
    count = -(-(length - overlap) // (side - overlap))
    starts = [round(index * (length - side) / (count - 1)) for index in range(count)]
    middles = [(start + side + following) // 2 for start, following in pairwise(starts)]
    cores = zip([0, *middles], [*middles, length])
    return [(slice(start, start + side), slice(*core)) for start, core in zip(starts, cores)]


def same_segments(tile: Tile, segments: Segments, other: Tile, others: Segments) -> list[tuple[int, int]]:
    """Return pairs of segments (indices) that agree where both tiles see, each the best partner of the other.

    The best partner has the largest product of IoU and scores, so a doubtful segment does not come between.
    """
    shared = [
        slice(max(mine.start, theirs.start), min(mine.stop, theirs.stop))
        for mine, theirs in zip(tile.window, other.window)
    ]
    if any(part.start >= part.stop for part in shared):
        return []
    here, there = crop(segments.layers, tile, shared), crop(others.layers, other, shared)
    columns = len(others) + 1
    joint = torch.zeros((len(segments) + 1) * columns, dtype=torch.int64)
    for mine in here:
        for theirs in there:
            joint += torch.bincount((mine * columns + theirs).flatten(), minlength=len(joint))
    both = joint.view(-1, columns)[1:, 1:]
    my_area = torch.bincount(here.flatten(), minlength=len(segments) + 1)[1:, None]
    their_area = torch.bincount(there.flatten(), minlength=columns)[None, 1:]
    iou = both / (my_area + their_area - both).clamp(min=1)
    if iou.numel() == 0:
        return []
    worth = (iou * segments.scores[:, None] * others.scores).where(iou >= SAME, 0.0)
    best = (worth == worth.amax(dim=0, keepdim=True)) & (worth == worth.amax(dim=1, keepdim=True))
    pairs: list[tuple[int, int]] = (best & (worth > 0)).nonzero().tolist()
    return [(mine, theirs) for mine, theirs in pairs]


def crop(
    layers: Tensor, tile: Tile, part: list[slice] | tuple[slice, slice]
) -> Int64[Tensor, "layers rows columns"]:
    """Return a part of the image, cut out of the layers of a tile."""
    rows, columns = (slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, tile.window))
    return layers[:, rows, columns].long()

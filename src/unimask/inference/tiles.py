"""Images cut into tiles: where the tiles lie, and which segments of two tiles are the same.

For images with more objects than a model has queries, or larger than those of its training. The results of
tiles are joined in `inference/joining.py`.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from unimask.config.data import DataConfig, SlidingWindow, Tiles
from unimask.data.placing import placement_for, resize_image
from unimask.structures import Placement, Segments, Size

SAME = 0.5  # lowest IoU, inside both tiles, of two instances that are one
SEEN = 0.5  # share of a segment that must be left where its tiles decide


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of an image. The model gets the `window`; the `core`s of all tiles make up the image."""

    window: tuple[slice, slice]  # rows, columns of the image (sliding windows: of the resized image)
    core: tuple[slice, slice]  # the part of the window where this tile decides

    @property
    def size(self) -> Size:
        """(height, width) of the window."""
        rows, columns = self.window
        return rows.stop - rows.start, columns.stop - columns.start


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The tiles of an image, row by row, and the frame that they are cut from.

    The frame is the image itself, or for sliding windows the resized image.
    """

    frame: Placement
    tiles: list[Tile]


def tiling_of(size: Size, config: DataConfig) -> Tiling:
    """Return the tiles of an image of `size`; without tiles in the settings it is a single one."""
    view = config.view
    if isinstance(view, SlidingWindow):
        resized = placement_for(size, config).resized
        frame = Placement(original=size, resized=resized, canvas=resized)
        return Tiling(frame=frame, tiles=sliding_windows(resized, view.size, view.overlap))
    tiles = grid(size, view.size, view.overlap) if isinstance(view, Tiles) else whole(size)
    return Tiling(frame=unchanged(size), tiles=tiles)


def unchanged(size: Size) -> Placement:
    """Return the placement of an image that is not resized."""
    return Placement(original=size, resized=size, canvas=size)


def framed(image: UInt8[Tensor, "3 _height _width"], frame: Placement) -> UInt8[Tensor, "3 _rows _columns"]:
    """Return the image that tiles are cut from."""
    return resize_image(image, frame.resized)


def tile_placement(size: Size, config: DataConfig) -> Placement:
    """Return where a tile of `size` lies on the canvas that the model gets: sliding windows keep their size.

    All sliding windows have one canvas; one that is cut off at a side of the image is padded.
    """
    if not isinstance(config.view, SlidingWindow):
        return placement_for(size, config)
    side = -(-config.view.size // config.divisor) * config.divisor
    return Placement(original=size, resized=size, canvas=(side, side))


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


def sliding_windows(size: Size, side: int, overlap: int) -> list[Tile]:
    """Return square windows of `side` pixels, as few as share at least `overlap`, evenly spread, row by row.

    Every pixel belongs to all windows that hold it: their cores are not used.

    Source: the original code of EoMT (`window_imgs_semantic`), with `overlap` 0. There, starts are products
    of rounded numbers, and at some lengths a window lies a pixel further left; here they are exact.
    """
    rows, columns = (_slide(length, side, overlap) for length in size)
    return [Tile(window=(down, right), core=(down, right)) for down in rows for right in columns]


def _slide(length: int, side: int, overlap: int) -> list[slice]:
    count = max(1, -(-(length - overlap) // (side - overlap)))
    starts = [index * (length - side) // (count - 1) if index else 0 for index in range(count)]
    return [slice(start, min(start + side, length)) for start in starts]


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
    """Return pairs of segments (indices) that agree inside both tiles, each the best partner of the other.

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

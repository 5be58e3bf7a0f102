"""Pictures seen tile by tile: where the tiles lie, and how their segments become those of the picture.

For pictures with more objects than a model has queries, or larger than what it was trained on.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from unimask.ops.masks import MOST_SEGMENTS, LayerPacker, renumber
from unimask.structures import Segments, Size

SAME = 0.5  # IoU, where both tiles see, from which on two instances are one
SEEN = 0.5  # share of a segment that must be left where its tiles decide


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of a picture. `window` is what the model sees; the `core`s of all tiles make up the picture."""

    window: tuple[slice, slice]  # rows, columns of the picture
    core: tuple[slice, slice]  # the part of the window where this tile decides

    @property
    def size(self) -> Size:
        """(height, width) of the window."""
        rows, columns = self.window
        return rows.stop - rows.start, columns.stop - columns.start


def whole(size: Size) -> list[Tile]:
    """The picture as one tile."""
    everything = (slice(0, size[0]), slice(0, size[1]))
    return [Tile(window=everything, core=everything)]


def grid(size: Size, side: int, overlap: int) -> list[Tile]:
    """Square tiles of `side` pixels, evenly spread, neighbours sharing at least `overlap` pixels.

    Neighbours meet in the middle of what they share. A side of the picture that is no longer than a tile is
    covered by one.
    """
    rows, columns = (_spread(length, side, overlap) for length in size)
    return [
        Tile(window=(window_rows, window_columns), core=(core_rows, core_columns))
        for window_rows, core_rows in rows
        for window_columns, core_columns in columns
    ]


def _spread(length: int, side: int, overlap: int) -> list[tuple[slice, slice]]:
    """Windows and cores along one side of the picture."""
    if length <= side:
        return [(slice(0, length), slice(0, length))]
    count = -(-(length - overlap) // (side - overlap))
    starts = [round(index * (length - side) / (count - 1)) for index in range(count)]
    middles = [(start + side + following) // 2 for start, following in pairwise(starts)]
    cores = zip([0, *middles], [*middles, length])
    return [(slice(start, start + side), slice(*core)) for start, core in zip(starts, cores)]


def stitch(parts: list[tuple[Tile, Segments]], size: Size, unites: Bool[Tensor, " classes"]) -> Segments:
    """The segments of a picture from those of its tiles.

    Segments of a category that `unites` (stuff; in a semantic result all) are one. Two others of neighbouring
    tiles are one if they have the same category and their IoU is at least one half where both tiles see.
    Each pixel is taken from the tile in whose core it lies; a segment of another category than these of which
    less than half is left there was cut off by its tile's border and is dropped. The score is the best of the
    joined segments.
    """
    if len(parts) == 1:
        return parts[0][1]
    first = torch.tensor([0, *(len(segments) for _, segments in parts)]).cumsum(0)
    labels = torch.cat([segments.labels for _, segments in parts])
    scores = torch.cat([segments.scores for _, segments in parts])
    group = _groups(parts, first.tolist(), labels, unites)
    best = torch.zeros(len(labels), dtype=scores.dtype).scatter_reduce(0, group, scores, "amax")
    largest = torch.zeros(len(labels), dtype=torch.int64)
    whole_areas = torch.cat([segments.areas() for _, segments in parts])
    largest.scatter_reduce_(0, group, whole_areas, "amax")
    order = best.argsort(descending=True, stable=True)
    order = order[torch.isin(order, group)][:MOST_SEGMENTS]
    number = torch.zeros(len(labels), dtype=torch.int64)
    number[order] = torch.arange(1, len(order) + 1)
    painted = _paint(parts, first.tolist(), number[group], size)
    result = Segments(
        layers=painted,
        labels=labels[order],
        scores=best[order],
        is_crowd=torch.zeros(len(order), dtype=torch.bool),
    )
    areas = result.areas()
    cut_off = (areas < SEEN * largest[order]) & ~unites[labels[order]]
    return renumber(result, (areas > 0) & ~cut_off)


def _groups(
    parts: list[tuple[Tile, Segments]], first: list[int], labels: Tensor, unites: Tensor
) -> Int64[Tensor, " segments"]:
    """For each segment of all tiles the index of the one that stands for all it is joined with."""
    parent = list(range(len(labels)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    stands_for: dict[int, int] = {}
    for index, label in enumerate(labels.tolist()):
        if unites[label]:
            parent[index] = stands_for.setdefault(label, index)
    for one, (tile, segments) in enumerate(parts):
        for other in range(one + 1, len(parts)):
            for mine, theirs in same_segments(tile, segments, *parts[other]):
                a, b = first[one] + mine, first[other] + theirs
                if labels[a] == labels[b]:
                    parent[root(b)] = root(a)
    return torch.tensor([root(index) for index in range(len(parent))], dtype=torch.int64)


def same_segments(tile: Tile, segments: Segments, other: Tile, others: Segments) -> list[tuple[int, int]]:
    """Pairs of segments (indices) that agree where both tiles see, each the best partner of the other.

    The best partner has the largest product of IoU and scores, so a doubtful segment does not come between.
    """
    shared = [
        slice(max(mine.start, theirs.start), min(mine.stop, theirs.stop))
        for mine, theirs in zip(tile.window, other.window)
    ]
    if any(part.start >= part.stop for part in shared):
        return []
    here, there = _crop(segments.layers, tile, shared), _crop(others.layers, other, shared)
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


def _crop(
    layers: Tensor, tile: Tile, part: list[slice] | tuple[slice, slice]
) -> Int64[Tensor, "layers rows columns"]:
    """A part of the picture, cut out of the layers of a tile."""
    rows, columns = (slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, tile.window))
    return layers[:, rows, columns].long()


def _paint(
    parts: list[tuple[Tile, Segments]], first: list[int], number: Int64[Tensor, " segments"], size: Size
) -> Tensor:
    """The layers of the picture: in each core the segments of its tile, under their numbers."""
    pieces: dict[int, list[tuple[Tensor, tuple[slice, slice]]]] = {}
    for start, (tile, segments) in zip(first, parts):
        table = torch.cat([number.new_zeros(1), number[start : start + len(segments)]])
        for layer in table[_crop(segments.layers, tile, tile.core)]:
            for value in layer.unique().tolist():
                if value:
                    pieces.setdefault(value, []).append((layer == value, tile.core))
    packer = LayerPacker(size, torch.device("cpu"))
    for value in sorted(pieces):
        packer.add(value, pieces[value])
    return packer.layers()

"""The segments of a picture from those of its tiles: what several tiles see is decided by their majority.

Tiles overlap, so a thing that is smaller than their overlap is seen whole by one of them or more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy import ndarray
from scipy.ndimage import find_objects
from torch import Tensor

from unimask.inference.tiles import SAME, SEEN, Tile, crop, same_segments
from unimask.ops.id_maps import MOST_SEGMENTS, LayerPacker, renumber
from unimask.structures import Segments, Size

Parts = Sequence[tuple[Tile, Segments]]
Box = tuple[int, int, int, int]  # top, bottom, left, right; in pixels of the picture, ends exclusive


def stitch(parts: Parts, size: Size, unites: Bool[Tensor, " classes"], *, overlapping: bool) -> Segments:
    """The segments of a picture, by falling score.

    Segments of a category that `unites` (stuff; in a semantic result all) are one: each pixel is taken from
    the tile in whose core it lies, and the score is the best of them.

    All others are things. What a tile sees whole is compared with what the others see whole: from an IoU of
    one half on it is the same thing. It is kept if at least half of the tiles that see its place whole have
    found it; its score is the mean of theirs, and its pixels are those on which they agree, weighted by their
    scores. What no tile sees whole is put together from neighbouring tiles that agree (IoU of one half where
    both see), each pixel from the tile in whose core it lies.

    Pixels go to things before stuff, first to those with the largest sum of scores for the number of tiles
    that could see them; a thing of which less than half is still free is dropped. If `overlapping`, that is
    so within a category only, and things keep all their pixels.
    """
    if len(parts) == 1:
        return parts[0][1]
    views = _views(parts, size, unites)
    things = _seen_whole(views, [tile for tile, _ in parts], size)
    things += _larger_than_tiles(parts, views, things, size)
    stuff_layer, stuff = _united(parts, size, unites)
    return _paint(things, stuff_layer, stuff, overlapping)


@dataclass(frozen=True, kw_only=True)
class _SeenThing:
    """A thing as one tile sees it."""

    tile: int
    index: int  # among the tile's segments
    label: int
    score: float
    box: Box
    mask: Bool[ndarray, "rows columns"]  # in the box
    whole: bool  # it does not touch a side of the tile that lies inside the picture

    @property
    def area(self) -> int:
        return int(self.mask.sum())


@dataclass(frozen=True, kw_only=True)
class _Thing:
    """What the views together say. `weight` is the order in which pixels are given away."""

    label: int
    score: float
    weight: float
    votes: float  # share of the tiles that see it whole which have found it
    box: Box
    mask: Bool[ndarray, "rows columns"]  # in the box


def _views(parts: Parts, size: Size, unites: Bool[Tensor, " classes"]) -> list[_SeenThing]:
    """The things of all tiles, the better ones first."""
    found: list[_SeenThing] = []
    for number, (tile, segments) in enumerate(parts):
        for index, (top, left), mask in _masks(segments):
            label = int(segments.labels[index])
            if unites[label]:
                continue
            rows, columns = tile.window
            box = (
                rows.start + top,
                rows.start + top + mask.shape[0],
                columns.start + left,
                columns.start + left + mask.shape[1],
            )
            found.append(
                _SeenThing(
                    tile=number,
                    index=index,
                    label=label,
                    score=float(segments.scores[index]),
                    box=box,
                    mask=mask,
                    whole=bool(_inside(np.array(box), _edges([tile]), size)[0]),
                )
            )
    return sorted(found, key=lambda view: -view.score)


def _masks(segments: Segments) -> Iterator[tuple[int, tuple[int, int], Bool[ndarray, "rows columns"]]]:
    """Each segment that has pixels: its index, and its mask in its box with the box's (top, left)."""
    for layer in segments.layers.numpy():
        for index, window in enumerate(find_objects(layer, max_label=len(segments))):
            if window is not None:  # a segment lies in one layer
                rows, columns = window
                yield index, (rows.start, columns.start), layer[window] == index + 1


def _edges(tiles: Sequence[Tile]) -> Int64[ndarray, "tiles 4"]:
    """Their windows as boxes."""
    windows = [tile.window for tile in tiles]
    return np.array([[rows.start, rows.stop, columns.start, columns.stop] for rows, columns in windows])


def _inside(
    box: Int64[ndarray, "4"], edges: Int64[ndarray, "tiles 4"], size: Size
) -> Bool[ndarray, " tiles"]:
    """Which tiles see the box whole: it touches none of their sides but those of the picture."""
    top, bottom, left, right = edges.T
    return (
        ((top < box[0]) | (top == 0))
        & ((bottom > box[1]) | (bottom == size[0]))
        & ((left < box[2]) | (left == 0))
        & ((right > box[3]) | (right == size[1]))
    )


def _seen_whole(views: Sequence[_SeenThing], tiles: Sequence[Tile], size: Size) -> list[_Thing]:
    """The things that tiles see whole: the best view of one takes the same thing from every other tile."""
    whole = [view for view in views if view.whole]
    if not whole:
        return []
    edges = _edges(tiles)
    boxes = np.array([view.box for view in whole])
    labels, owners = np.array([view.label for view in whole]), np.array([view.tile for view in whole])
    areas = np.array([view.area for view in whole])
    free = np.ones(len(whole), dtype=bool)
    things: list[_Thing] = []
    for best, view in enumerate(whole):
        if not free[best]:
            continue
        free[best] = False
        near = np.flatnonzero(free & (labels == view.label) & (_box_iou(boxes[best], boxes) >= SAME / 2))
        members, seen_by = [view], {view.tile}
        for other in near.tolist():
            both = _common(view.box, view.mask, whole[other].box, whole[other].mask)
            same = both >= SAME * (areas[best] + areas[other] - both)
            if same and owners[other] not in seen_by:
                members.append(whole[other])
                seen_by.add(int(owners[other]))
                free[other] = False
        seers = max(int(_inside(boxes[best], edges, size).sum()), len(members))
        things.append(_agreement(members, seers))
    return things


def _box_iou(box: Int64[ndarray, "4"], boxes: Int64[ndarray, "count 4"]) -> ndarray:
    """The IoU of a box with others."""
    top, bottom, left, right = boxes.T
    height = (np.minimum(bottom, box[1]) - np.maximum(top, box[0])).clip(0)
    width = (np.minimum(right, box[3]) - np.maximum(left, box[2])).clip(0)
    both = height * width
    all_areas = (bottom - top) * (right - left)
    iou: ndarray = both / (all_areas + (box[1] - box[0]) * (box[3] - box[2]) - both)
    return iou


def _common(box: Box, mask: ndarray, other_box: Box, other_mask: ndarray) -> int:
    """How many pixels two masks share."""
    top, bottom = max(box[0], other_box[0]), min(box[1], other_box[1])
    left, right = max(box[2], other_box[2]), min(box[3], other_box[3])
    if top >= bottom or left >= right:
        return 0
    here = mask[top - box[0] : bottom - box[0], left - box[2] : right - box[2]]
    there = other_mask[top - other_box[0] : bottom - other_box[0], left - other_box[2] : right - other_box[2]]
    return int((here & there).sum())


def _agreement(members: Sequence[_SeenThing], seers: int) -> _Thing:
    """One thing from the views of it, where `seers` tiles could see it."""
    boxes = np.array([view.box for view in members])
    top, left = boxes[:, 0].min(), boxes[:, 2].min()
    bottom, right = boxes[:, 1].max(), boxes[:, 3].max()
    agreed = np.zeros((bottom - top, right - left))
    for view in members:
        rows = slice(view.box[0] - top, view.box[1] - top)
        agreed[rows, view.box[2] - left : view.box[3] - left] += view.score * view.mask
    total = sum(view.score for view in members)
    return _Thing(
        label=members[0].label,
        score=total / len(members),
        weight=total / seers,
        votes=len(members) / seers,
        box=(int(top), int(bottom), int(left), int(right)),
        mask=2 * agreed > total,
    )


def _larger_than_tiles(
    parts: Parts, views: Sequence[_SeenThing], things: Sequence[_Thing], size: Size
) -> list[_Thing]:
    """The things that no tile sees whole, from those of their views that are no part of another thing."""
    tiles = [tile for tile, _ in parts]
    edges = _edges(tiles)
    boxes = np.array([thing.box for thing in things], dtype=np.int64).reshape(-1, 4)
    pieces = [view for view in views if not view.whole and not _explained(view, things, boxes)]
    found: list[_Thing] = []
    for group in _groups(parts, pieces):
        largest = max(view.area for view in group)
        thing = _in_cores(group, tiles)
        if thing is None or thing.mask.sum() < SEEN * largest:
            continue  # cut off by the side of its tile
        if _inside(np.array(thing.box), edges, size).any():
            continue  # a tile that sees it whole has not found it
        found.append(thing)
    return found


def _explained(view: _SeenThing, things: Sequence[_Thing], boxes: Int64[ndarray, "things 4"]) -> bool:
    """Whether a view is a part of a thing of its category that another tile sees whole."""
    near = np.flatnonzero(_box_iou(np.array(view.box), boxes) > 0)
    return any(
        things[index].label == view.label
        and _common(view.box, view.mask, things[index].box, things[index].mask) >= SAME * view.area
        for index in near.tolist()
    )


def _groups(parts: Parts, pieces: Sequence[_SeenThing]) -> list[list[_SeenThing]]:
    """The pieces, those together that neighbouring tiles agree on."""
    by_tile: dict[int, dict[int, int]] = {}
    for number, piece in enumerate(pieces):
        by_tile.setdefault(piece.tile, {})[piece.index] = number
    parent = list(range(len(pieces)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    tiles = sorted(by_tile)
    for position, one in enumerate(tiles):
        for other in tiles[position + 1 :]:
            for mine, theirs in same_segments(*parts[one], *parts[other]):
                a, b = by_tile[one].get(mine), by_tile[other].get(theirs)
                if a is not None and b is not None and pieces[a].label == pieces[b].label:
                    parent[root(b)] = root(a)
    groups: dict[int, list[_SeenThing]] = {}
    for number, piece in enumerate(pieces):
        groups.setdefault(root(number), []).append(piece)
    return list(groups.values())


def _in_cores(group: Sequence[_SeenThing], tiles: Sequence[Tile]) -> _Thing | None:
    """What of the pieces lies in the cores of their tiles; None if nothing does."""
    boxes = np.array([view.box for view in group])
    top, bottom = int(boxes[:, 0].min()), int(boxes[:, 1].max())
    left, right = int(boxes[:, 2].min()), int(boxes[:, 3].max())
    mask = np.zeros((bottom - top, right - left), dtype=bool)
    for view in group:
        rows, columns = tiles[view.tile].core
        box = (rows.start, rows.stop, columns.start, columns.stop)
        up, down = max(view.box[0], box[0]), min(view.box[1], box[1])
        near, far = max(view.box[2], box[2]), min(view.box[3], box[3])
        if up < down and near < far:
            piece = view.mask[up - view.box[0] : down - view.box[0], near - view.box[2] : far - view.box[2]]
            mask[up - top : down - top, near - left : far - left] |= piece
    if not mask.any():
        return None
    score = max(view.score for view in group)
    return _Thing(
        label=group[0].label, score=score, weight=score, votes=1.0, box=(top, bottom, left, right), mask=mask
    )


def _united(
    parts: Parts, size: Size, unites: Bool[Tensor, " classes"]
) -> tuple[Int64[Tensor, "height width"], list[tuple[int, float]]]:
    """A layer with one segment per category that unites, and their labels and scores."""
    layer = torch.zeros(size, dtype=torch.int64)
    numbers: dict[int, int] = {}
    scores: list[float] = []
    for tile, segments in parts:
        table = torch.zeros(len(segments) + 1, dtype=torch.int64)
        for index, (label, score) in enumerate(zip(segments.labels.tolist(), segments.scores.tolist())):
            if unites[label]:
                if label not in numbers:
                    numbers[label] = len(numbers) + 1
                    scores.append(score)
                table[index + 1] = numbers[label]
                scores[numbers[label] - 1] = max(score, scores[numbers[label] - 1])
        layer[tile.core] = table[crop(segments.layers, tile, tile.core)].amax(dim=0)
    return layer, list(zip(numbers, scores, strict=True))


def _paint(
    things: Sequence[_Thing],
    stuff_layer: Int64[Tensor, "height width"],
    stuff: Sequence[tuple[int, float]],
    overlapping: bool,
) -> Segments:
    """All of them as segments."""
    size: Size = (stuff_layer.shape[0], stuff_layer.shape[1])
    kept = _visible(things, size, overlapping)
    found = [*stuff, *((thing.label, thing.score) for thing, _ in kept)]
    labels = torch.tensor([label for label, _ in found], dtype=torch.int64)
    scores = torch.tensor([score for _, score in found], dtype=torch.float32)
    order = scores.argsort(descending=True, stable=True)[:MOST_SEGMENTS]
    numbers = torch.zeros(len(scores) + 1, dtype=torch.int16)  # number 0 is none
    numbers[order + 1] = torch.arange(1, len(order) + 1, dtype=torch.int16)
    base = numbers[: len(stuff) + 1][stuff_layer]
    packer = LayerPacker(size, torch.device("cpu"))
    for (thing, mask), number in zip(kept, numbers[len(stuff) + 1 :].tolist(), strict=True):
        window = (slice(*thing.box[:2]), slice(*thing.box[2:]))
        packer.add(number, [(torch.from_numpy(mask), window)])
    layers = packer.layers()
    layers[0] = torch.where(layers[0] > 0, layers[0], base)
    result = Segments(
        layers=layers,
        labels=labels[order],
        scores=scores[order],
        is_crowd=torch.zeros(len(order), dtype=torch.bool),
    )
    return renumber(result, result.areas() > 0)


def _visible(
    things: Sequence[_Thing], size: Size, overlapping: bool
) -> list[tuple[_Thing, Bool[ndarray, "rows columns"]]]:
    """The things that stay, by falling weight, each with those pixels of its box that are its own."""
    taken: dict[int, Bool[ndarray, "height width"]] = {}
    kept: list[tuple[_Thing, Bool[ndarray, "rows columns"]]] = []
    for thing in sorted(things, key=lambda one: -one.weight):
        if thing.votes < SEEN:
            continue
        top, bottom, left, right = thing.box
        map_of = taken.setdefault(thing.label if overlapping else 0, np.zeros(size, dtype=bool))
        window = map_of[top:bottom, left:right]
        left_over = thing.mask & ~window
        if left_over.any() and left_over.sum() >= SEEN * thing.mask.sum():
            kept.append((thing, thing.mask if overlapping else left_over))
            window |= thing.mask
    return kept

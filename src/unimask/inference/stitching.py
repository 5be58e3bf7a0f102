"""The segments of an image from those of its tiles, which decide by majority where they overlap.

Tiles overlap, so a thing that is smaller than their overlap is seen whole by one of them or more. Images that
fit into memory and those that do not are joined by the same code; only the storage differs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from numpy import ndarray
from scipy.ndimage import find_objects
from torch import Tensor

from unimask.inference.storage import MemoryStorage, Storage
from unimask.inference.tile_boxes import Box, BoxIndex, around, box_iou, edges_of, seeing_whole, shared_pixels
from unimask.inference.tiles import SAME, SEEN, Tile, crop, same_segments
from unimask.ops.id_maps import MOST_SEGMENTS, LayerPacker, renumber
from unimask.structures import Segments, Size

Parts = Sequence[tuple[Tile, Segments]]


def stitch(parts: Parts, size: Size, unites: Bool[Tensor, " classes"], *, overlapping: bool) -> Segments:
    """Return the segments of an image from those of its tiles, by falling score; see `Stitcher`."""
    if len(parts) == 1:
        return parts[0][1]
    stitcher = Stitcher(size, unites, overlapping=overlapping, storage=MemoryStorage())
    for tile, segments in parts:
        stitcher.add(tile, segments)
    return stitcher.stitch().segments()


@dataclass(frozen=True, kw_only=True)
class _View:
    """A thing as one tile sees it."""

    tile: int
    layer: int
    index: int  # among the tile's segments
    label: int
    score: float
    box: Box
    area: int
    whole: bool  # it does not touch a side of the tile that lies inside the image


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A thing as all its views agree on it. Pixels are given to things by falling `weight`."""

    label: int
    score: float
    weight: float
    votes: float  # share of the tiles that see it whole which have found it
    box: Box
    mask: int  # number of its mask in the box, in the storage


class Stitcher:
    """Joins the segments of tiles.

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

    Masks and maps lie in the storage. Besides them, a few numbers are kept for each segment of each tile.
    """

    def __init__(
        self, size: Size, unites: Bool[Tensor, " classes"], *, overlapping: bool, storage: Storage
    ) -> None:
        self._size = size
        self._unites: list[bool] = unites.tolist()
        self._overlapping = overlapping
        self._storage = storage
        self._tiles: list[Tile] = []
        self._layers: list[int] = []  # of each tile, in the storage
        self._found: list[Segments] = []  # of each tile, without its pixels
        self._views: list[_View] = []
        self._stuff_map = storage.zeros(size, np.uint16)
        self._stuff: dict[int, float] = {}  # label -> score, in the order of their numbers in the map

    def add(self, tile: Tile, segments: Segments) -> None:
        """Add the segments of the next tile."""
        self._tiles.append(tile)
        self._layers.append(self._storage.put(segments.layers.numpy()))
        self._found.append(
            Segments(
                layers=segments.layers.new_zeros((0, *tile.size)),
                labels=segments.labels,
                scores=segments.scores,
                is_crowd=segments.is_crowd,
            )
        )
        self._add_views(tile, segments)
        self._add_stuff(tile, segments)

    def _add_views(self, tile: Tile, segments: Segments) -> None:
        rows, columns = tile.window
        labels, scores = segments.labels.tolist(), segments.scores.tolist()
        for number, layer in enumerate(segments.layers.numpy()):
            for index, window in enumerate(find_objects(layer, max_label=len(segments))):
                if window is None or self._unites[labels[index]]:  # a segment lies in one layer
                    continue
                box = (
                    rows.start + window[0].start,
                    rows.start + window[0].stop,
                    columns.start + window[1].start,
                    columns.start + window[1].stop,
                )
                self._views.append(
                    _View(
                        tile=len(self._tiles) - 1,
                        layer=number,
                        index=index,
                        label=labels[index],
                        score=scores[index],
                        box=box,
                        area=int((layer[window] == index + 1).sum()),
                        whole=bool(seeing_whole(np.array(box), edges_of([tile]), self._size)[0]),
                    )
                )

    def _add_stuff(self, tile: Tile, segments: Segments) -> None:
        table = torch.zeros(len(segments) + 1, dtype=torch.int64)
        for index, (label, score) in enumerate(zip(segments.labels.tolist(), segments.scores.tolist())):
            if self._unites[label]:
                self._stuff[label] = max(score, self._stuff.get(label, score))
                table[index + 1] = list(self._stuff).index(label) + 1
        numbers = table[crop(segments.layers, tile, tile.core)].amax(dim=0)
        self._storage[self._stuff_map][tile.core] = numbers.numpy()

    def stitch(self) -> "Stitched":
        """Return the joined segments of all tiles."""
        cell = max((*self._tiles[0].size, 1))
        tiles = BoxIndex(cell)
        for number, (top, bottom, left, right) in enumerate(edges_of(self._tiles).tolist()):
            tiles.add(number, (top, bottom, left, right))
        self._views.sort(key=lambda view: -view.score)
        things = self._seen_whole(tiles, cell)
        things += self._larger_than_tiles(tiles, things, cell)
        return Stitched(
            size=self._size,
            stuff=tuple(self._stuff.items()),
            stuff_map=self._stuff_map,
            things=tuple(self._visible(things)),
            storage=self._storage,
        )

    def _mask(self, view: _View) -> Bool[ndarray, "rows columns"]:
        """Return the mask of a view in its box."""
        rows, columns = self._tiles[view.tile].window
        top, bottom, left, right = view.box
        layer = self._storage[self._layers[view.tile]][view.layer]
        part = layer[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start]
        mask: ndarray = np.asarray(part == view.index + 1)
        return mask

    def _seers(self, tiles: BoxIndex, box: Box) -> int:
        """Return how many tiles see a box whole."""
        near = [self._tiles[number] for number in tiles.near(box).tolist()]
        return int(seeing_whole(np.array(box), edges_of(near), self._size).sum())

    def _seen_whole(self, tiles: BoxIndex, cell: int) -> list[Thing]:
        """Return the things that tiles see whole; the best view takes the same thing from other tiles."""
        whole = [view for view in self._views if view.whole]
        if not whole:
            return []
        index = BoxIndex(cell)
        for number, view in enumerate(whole):
            index.add(number, view.box)
        boxes = np.array([view.box for view in whole])
        labels = np.array([view.label for view in whole])
        free = np.ones(len(whole), dtype=bool)
        things: list[Thing] = []
        for best, view in enumerate(whole):
            if not free[best]:
                continue
            free[best] = False
            near = index.near(view.box)
            near = near[free[near] & (labels[near] == view.label)]
            near = near[box_iou(boxes[best], boxes[near]) >= SAME / 2]
            members, masks = [view], [self._mask(view)]
            for number in near.tolist():
                other, mask = whole[number], self._mask(whole[number])
                both = shared_pixels(view.box, masks[0], other.box, mask)
                same = both >= SAME * (view.area + other.area - both)
                if same and all(other.tile != member.tile for member in members):
                    members.append(other)
                    masks.append(mask)
                    free[number] = False
            seers = max(self._seers(tiles, view.box), len(members))
            things.append(self._agreement(members, masks, seers))
        return things

    def _agreement(self, members: Sequence[_View], masks: Sequence[ndarray], seers: int) -> Thing:
        """Return one thing from the views of it, where `seers` tiles could see it."""
        top, bottom, left, right = box = around([view.box for view in members])
        agreed = np.zeros((bottom - top, right - left))
        for view, mask in zip(members, masks, strict=True):
            rows = slice(view.box[0] - top, view.box[1] - top)
            agreed[rows, view.box[2] - left : view.box[3] - left] += view.score * mask
        total = sum(view.score for view in members)
        return Thing(
            label=members[0].label,
            score=total / len(members),
            weight=total / seers,
            votes=len(members) / seers,
            box=box,
            mask=self._storage.put(2 * agreed > total),
        )

    def _larger_than_tiles(self, tiles: BoxIndex, things: Sequence[Thing], cell: int) -> list[Thing]:
        """Return the things that no tile sees whole, from views that are no part of another thing."""
        index = BoxIndex(cell)
        for number, thing in enumerate(things):
            index.add(number, thing.box)
        pieces = [
            view
            for view in self._views
            if not view.whole
            and not self._explained(view, [things[number] for number in index.near(view.box).tolist()])
        ]
        found: list[Thing] = []
        for group in self._groups(tiles, pieces):
            box = around([view.box for view in group])
            mask = self._in_cores(group, box)
            if not mask.any() or mask.sum() < SEEN * max(view.area for view in group):
                continue  # cut off by the side of its tile
            if self._seers(tiles, box):
                continue  # a tile that sees it whole has not found it
            score = max(view.score for view in group)
            number = self._storage.put(mask)
            found.append(
                Thing(label=group[0].label, score=score, weight=score, votes=1.0, box=box, mask=number)
            )
        return found

    def _explained(self, view: _View, near: Sequence[Thing]) -> bool:
        """Return whether a view is a part of a thing of its category that another tile sees whole."""
        mask = self._mask(view)
        return any(
            thing.label == view.label
            and shared_pixels(view.box, mask, thing.box, self._storage[thing.mask]) >= SAME * view.area
            for thing in near
        )

    def _groups(self, tiles: BoxIndex, pieces: Sequence[_View]) -> list[list[_View]]:
        """Return the pieces in groups on which neighbouring tiles agree."""
        by_tile: dict[int, dict[int, int]] = {}
        for number, piece in enumerate(pieces):
            by_tile.setdefault(piece.tile, {})[piece.index] = number
        parent = list(range(len(pieces)))

        def root(number: int) -> int:
            while parent[number] != number:
                parent[number] = parent[parent[number]]
                number = parent[number]
            return number

        for one in sorted(by_tile):
            (window,) = edges_of([self._tiles[one]]).tolist()
            for other in tiles.near(tuple(window)).tolist():
                if other <= one or other not in by_tile:
                    continue
                for mine, theirs in same_segments(*self._part(one), *self._part(other)):
                    a, b = by_tile[one].get(mine), by_tile[other].get(theirs)
                    if a is not None and b is not None and pieces[a].label == pieces[b].label:
                        parent[root(b)] = root(a)
        groups: dict[int, list[_View]] = {}
        for number, piece in enumerate(pieces):
            groups.setdefault(root(number), []).append(piece)
        return list(groups.values())

    def _part(self, tile: int) -> tuple[Tile, Segments]:
        """Return a tile and its segments."""
        found = self._found[tile]
        layers = torch.from_numpy(self._storage[self._layers[tile]])
        return self._tiles[tile], Segments(
            layers=layers, labels=found.labels, scores=found.scores, is_crowd=found.is_crowd
        )

    def _in_cores(self, group: Sequence[_View], box: Box) -> Bool[ndarray, "rows columns"]:
        """Return a mask in the box: the parts of the pieces that lie in the cores of their tiles."""
        top, bottom, left, right = box
        mask = np.zeros((bottom - top, right - left), dtype=bool)
        for view in group:
            rows, columns = self._tiles[view.tile].core
            up, down = max(view.box[0], rows.start), min(view.box[1], rows.stop)
            near, far = max(view.box[2], columns.start), min(view.box[3], columns.stop)
            if up < down and near < far:
                piece = self._mask(view)
                piece = piece[up - view.box[0] : down - view.box[0], near - view.box[2] : far - view.box[2]]
                mask[up - top : down - top, near - left : far - left] |= piece
        return mask

    def _visible(self, things: Sequence[Thing]) -> Iterator[tuple[Thing, int]]:
        """Yield the things that stay, by falling weight, each with the mask of its own pixels."""
        taken: dict[int, int] = {}
        for thing in sorted(things, key=lambda one: -one.weight):
            if thing.votes < SEEN:
                continue
            top, bottom, left, right = thing.box
            key = thing.label if self._overlapping else 0
            if key not in taken:
                taken[key] = self._storage.zeros(self._size, bool)
            window = self._storage[taken[key]][top:bottom, left:right]
            mask = self._storage[thing.mask]
            left_over = mask & ~window
            if left_over.any() and left_over.sum() >= SEEN * mask.sum():
                yield thing, thing.mask if self._overlapping else self._storage.put(left_over)
                window |= mask


@dataclass(frozen=True, kw_only=True)
class Stitched:
    """The joined segments of all tiles. Masks and maps lie in the storage, under their numbers."""

    size: Size
    stuff: tuple[tuple[int, float], ...]  # label and score; the numbers 1, 2, ... of the map
    stuff_map: int
    things: tuple[tuple[Thing, int], ...]  # each with its visible mask in its box
    storage: Storage

    def found(self) -> list[tuple[int, float]]:
        """Return label and score of all segments: stuff first, then things."""
        return [*self.stuff, *((thing.label, thing.score) for thing, _ in self.things)]

    def order(self) -> list[int]:
        """Return the indices of all segments by falling score."""
        scores = torch.tensor([score for _, score in self.found()], dtype=torch.float32)
        order: list[int] = scores.argsort(descending=True, stable=True).tolist()
        return order

    def segments(self) -> Segments:
        """Return the segments by falling score, in memory; those without pixels are left out."""
        order = torch.tensor(self.order()[:MOST_SEGMENTS], dtype=torch.int64)
        labels = torch.tensor([label for label, _ in self.found()], dtype=torch.int64)
        scores = torch.tensor([score for _, score in self.found()], dtype=torch.float32)
        numbers = torch.zeros(len(scores) + 1, dtype=torch.int16)  # number 0 is none
        numbers[order + 1] = torch.arange(1, len(order) + 1, dtype=torch.int16)
        packer = LayerPacker(self.size, torch.device("cpu"))
        for (thing, mask), number in zip(self.things, numbers[len(self.stuff) + 1 :].tolist(), strict=True):
            window = (slice(*thing.box[:2]), slice(*thing.box[2:]))
            packer.add(number, [(torch.from_numpy(self.storage[mask]), window)])
        layers = packer.layers()
        base = torch.from_numpy(numbers.numpy()[self.storage[self.stuff_map]])
        layers[0] = torch.where(layers[0] > 0, layers[0], base)
        result = Segments(
            layers=layers,
            labels=labels[order],
            scores=scores[order],
            is_crowd=torch.zeros(len(order), dtype=torch.bool),
        )
        return renumber(result, result.areas() > 0)

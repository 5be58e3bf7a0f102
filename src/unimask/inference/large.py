"""Pictures larger than memory: tile by tile, with segments joined where tiles meet, onto disk.

Memory holds one tile, of earlier ones what later ones see too (the overlap, along one row of tiles), and a
few numbers per segment. The id map grows in a file beside the result; its numbers are provisional until the
last tile has been seen.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt32
from numpy import ndarray

from unimask.config.images import Task
from unimask.data.windows import LargePicture
from unimask.errors import DataError, needs_extra
from unimask.files import write_text
from unimask.inference.segmenter import Segmenter, categories_united
from unimask.inference.tiles import SEEN, Tile, grid, same_segments
from unimask.structures import Categories, Segments, Size

BLOCK = 256  # side of the blocks of the id map's TIFF


@dataclass(frozen=True, kw_only=True)
class LargeSegment:
    """One segment of a large picture."""

    id: int  # in the id map; 1, 2, ... by falling score
    label: int
    score: float
    area: int
    bbox: tuple[int, int, int, int]  # x, y, width, height


@dataclass(frozen=True, kw_only=True)
class LargeResult:
    """What was found; the id map is in the file."""

    size: Size
    segments: tuple[LargeSegment, ...]
    map_file: Path


@dataclass(kw_only=True)
class _Book:
    """A few numbers for each segment of each tile, under its provisional number (its index here)."""

    labels: list[int] = field(default_factory=lambda: [-1])  # number 0 is none
    scores: list[float] = field(default_factory=lambda: [0.0])
    areas: list[int] = field(default_factory=lambda: [0])  # as its tile saw it
    core_areas: list[int] = field(default_factory=lambda: [0])
    boxes: list[tuple[int, int, int, int]] = field(
        default_factory=lambda: [(0, 0, 0, 0)]
    )  # edges, in the core
    parent: list[int] = field(default_factory=lambda: [0])

    def add(self, segments: Segments) -> int:
        """Takes the segments of a tile; the number of the first comes out."""
        first = len(self.labels)
        self.labels += segments.labels.tolist()
        self.scores += segments.scores.tolist()
        self.areas += segments.areas().tolist()
        self.core_areas += [0] * len(segments)
        self.boxes += [(0, 0, 0, 0)] * len(segments)
        self.parent += range(first, first + len(segments))
        return first

    def root(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def join(self, one: int, other: int) -> None:
        self.parent[self.root(other)] = self.root(one)


@dataclass(frozen=True, kw_only=True)
class _TileSegments:
    """A tile that has been seen, or a part of it, and the provisional number of its first segment."""

    tile: Tile
    segments: Segments
    first: int


class _TileOverlaps:
    """Of the tiles seen so far, what later ones see too. They come row by row, each row from the left."""

    def __init__(self, tiles: list[Tile]) -> None:
        self._starts = [sorted({tile.window[axis].start for tile in tiles}) for axis in (0, 1)]
        self._row = -1
        self._above: list[_TileSegments] = []  # lower parts of tiles in rows above
        self._here: list[_TileSegments] = []  # lower parts of those in this row
        self._left: list[_TileSegments] = []  # right parts of those in this row

    def with_tile(self, tile: Tile) -> list[_TileSegments]:
        """All that may share pixels with the tile that comes next."""
        if tile.window[0].start != self._row:
            self._row = tile.window[0].start
            lower = (*self._above, *self._here)
            self._above = [one for one in lower if one.tile.window[0].stop > self._row]
            self._here, self._left = [], []
        self._left = [one for one in self._left if one.tile.window[1].stop > tile.window[1].start]
        return [*self._above, *self._left]

    def add(self, seen: _TileSegments) -> None:
        """Keeps what the tiles below and to the right see of this one."""
        self._here += self._later_part(seen, 0)
        self._left += self._later_part(seen, 1)

    def _later_part(self, seen: _TileSegments, axis: int) -> list[_TileSegments]:
        """From where the next tile starts along the axis; nothing for the last one."""
        window = seen.tile.window
        later = [start for start in self._starts[axis] if start > window[axis].start]
        if not later:
            return []
        sides = list(window)
        sides[axis] = slice(max(window[axis].start, later[0]), window[axis].stop)
        part = (sides[0], sides[1])
        rows, columns = (slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, window))
        segments = replace(seen.segments, layers=seen.segments.layers[:, rows, columns].clone())
        return [replace(seen, tile=replace(seen.tile, window=part), segments=segments)]


class _Map:
    """An id map in a file, 0 where nothing has been written; no part of it stays in memory."""

    def __init__(self, path: Path, size: Size) -> None:
        self.size, self.file = size, path.open("w+b")
        self.file.truncate(4 * size[0] * size[1])

    def write(self, window: tuple[slice, slice], numbers: UInt32[ndarray, "rows columns"]) -> None:
        rows, columns = window
        for row, values in zip(range(rows.start, rows.stop), numbers, strict=True):
            self.file.seek(4 * (row * self.size[1] + columns.start))
            self.file.write(values.tobytes())

    def read(self, top: int, bottom: int) -> UInt32[ndarray, "rows columns"]:
        width = self.size[1]
        self.file.seek(4 * top * width)
        return np.frombuffer(self.file.read(4 * (bottom - top) * width), np.uint32).reshape(-1, width)


def segment_large(
    segmenter: Segmenter,
    picture: LargePicture,
    task: Task,
    map_file: Path,
    *,
    side: int,
    overlap: int,
    threshold: float | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> LargeResult:
    """Segments a picture in tiles and writes its id map as a tiled TIFF of 32-bit numbers.

    Segments of neighbouring tiles are one if they agree (IoU of one half where both see); each pixel is taken
    from the tile in whose core it lies, and where instances overlap, from the one of the better score.
    The file appears when it is complete.

    Raises:
        DataError: the picture cannot be read, or the file cannot be written.
        MissingPackageError: tifffile is not installed.
    """
    tiles = grid(picture.size, side, overlap)
    unites = categories_united(segmenter.categories, task).tolist()
    book, stuff = _Book(), dict[int, int]()
    overlaps = _TileOverlaps(tiles)
    try:
        with tempfile.TemporaryDirectory(dir=map_file.parent, prefix=f".{map_file.name}.") as folder:
            provisional = _Map(Path(folder) / "map", picture.size)
            for index, tile in enumerate(tiles):
                (segments,) = segmenter.find([picture.read(*tile.window)], task, threshold=threshold)
                assert isinstance(segments, Segments)
                seen = _TileSegments(tile=tile, segments=segments, first=book.add(segments))
                _join(book, stuff, unites, overlaps.with_tile(tile), seen)
                overlaps.add(seen)
                _paint(provisional, book, tile, segments, seen.first)
                progress(index + 1, len(tiles))
            numbers, found = _number(book, unites)
            _write_map(provisional, numbers, Path(folder) / "map.tif")
            provisional.file.close()
            os.replace(Path(folder) / "map.tif", map_file)
    except OSError as error:
        raise DataError(map_file, f"cannot be written ({error.strerror or error})") from None
    return LargeResult(size=picture.size, segments=found, map_file=map_file)


def _join(
    book: _Book,
    stuff: dict[int, int],
    unites: list[bool],
    earlier: list[_TileSegments],
    seen: _TileSegments,
) -> None:
    """Joins the segments of a tile with those of stuff, and with those that earlier tiles saw too."""
    for number, label in enumerate(seen.segments.labels.tolist(), start=seen.first):
        if unites[label]:
            book.join(stuff.setdefault(label, number), number)
    for other in earlier:
        for theirs, mine in same_segments(other.tile, other.segments, seen.tile, seen.segments):
            if book.labels[other.first + theirs] == book.labels[seen.first + mine]:
                book.join(other.first + theirs, seen.first + mine)


def _paint(provisional: _Map, book: _Book, tile: Tile, segments: Segments, first: int) -> None:
    """Writes the core of a tile, and counts what of each segment lies there."""
    inside = tuple(slice(c.start - w.start, c.stop - w.start) for c, w in zip(tile.core, tile.window))
    layers = segments.layers[:, inside[0], inside[1]].numpy().astype(np.int64)
    order = np.append(0, len(segments) - segments.scores.argsort(descending=True).argsort().numpy())
    best = np.take_along_axis(layers, order[layers].argmax(axis=0)[None], axis=0)[0]
    provisional.write(tile.core, np.where(best > 0, best + (first - 1), 0).astype(np.uint32))
    for number in np.unique(best[best > 0]).tolist():
        mask = best == number
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, left = tile.core[0].start, tile.core[1].start
        place = first - 1 + number
        book.core_areas[place] = int(mask.sum())
        book.boxes[place] = (
            int(columns[0]) + left,
            int(rows[0]) + top,
            int(columns[-1]) + left + 1,
            int(rows[-1]) + top + 1,
        )


def _number(
    book: _Book, unites: list[bool]
) -> tuple[UInt32[ndarray, " provisional"], tuple[LargeSegment, ...]]:
    """The final number of every provisional one, and the segments that stay, by falling score.

    Those of categories that are united stay wherever they have pixels: no border cuts them off.
    """
    roots = np.array([book.root(number) for number in range(len(book.parent))])
    count = len(roots)
    score, largest, area = np.zeros(count), np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    np.maximum.at(score, roots, book.scores)
    np.maximum.at(largest, roots, book.areas)
    np.add.at(area, roots, book.core_areas)
    boxes = np.array(book.boxes)
    edges = np.full((count, 4), np.iinfo(np.int64).max)
    seen = np.array(book.core_areas) > 0
    signs = np.array([1, 1, -1, -1])
    np.minimum.at(edges, roots[seen], boxes[seen] * signs)
    cut_off = (area < SEEN * largest) & ~np.array([False, *(unites[label] for label in book.labels[1:])])
    kept = np.flatnonzero((roots == np.arange(count)) & (area > 0) & ~cut_off)
    kept = kept[kept > 0]
    kept = kept[np.argsort(-score[kept], kind="stable")]
    numbers = np.zeros(count, dtype=np.uint32)
    numbers[kept] = np.arange(1, len(kept) + 1)
    segments = []
    for index, root in enumerate(kept.tolist()):
        left, top, right, bottom = (edges[root] * signs).tolist()
        segments.append(
            LargeSegment(
                id=index + 1,
                label=book.labels[root],
                score=round(float(score[root]), 6),
                area=int(area[root]),
                bbox=(left, top, right - left, bottom - top),
            )
        )
    return numbers[roots], tuple(segments)


def _write_map(provisional: _Map, numbers: UInt32[ndarray, " provisional"], path: Path) -> None:
    with needs_extra("tiff", path):
        import tifffile
    height, width = provisional.size

    def blocks() -> Iterator[ndarray]:
        for top in range(0, height, BLOCK):
            rows = provisional.read(top, min(top + BLOCK, height))
            for left in range(0, width, BLOCK):
                block = np.zeros((BLOCK, BLOCK), dtype=np.uint32)
                part = numbers[rows[:, left : left + BLOCK]]
                block[: part.shape[0], : part.shape[1]] = part
                yield block

    tifffile.imwrite(
        path,
        blocks(),
        shape=(height, width),
        dtype=np.uint32,
        tile=(BLOCK, BLOCK),
        compression="zlib",
        bigtiff=height * width > 2**29,
    )


def save_large(result: LargeResult, categories: Categories, task: Task, path: Path) -> None:
    """Write the segments as JSON, as `Result.to_json` has them, without masks.

    Raises:
        DataError: the file cannot be written.
    """
    rows = zip(categories.file_ids, categories.names, categories.is_thing, categories.colors, strict=True)
    content = {
        "task": task,
        "height": result.size[0],
        "width": result.size[1],
        "map": result.map_file.name,
        "categories": [
            {"id": file_id, "name": name, "isthing": int(is_thing), "color": list(color)}
            for file_id, name, is_thing, color in rows
        ],
        "segments": [
            {
                "id": one.id,
                "category_id": categories.file_ids[one.label],
                "category": categories.names[one.label],
                "score": one.score,
                "area": one.area,
                "bbox": list(one.bbox),
            }
            for one in result.segments
        ],
    }
    try:
        write_text(path, json.dumps(content, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(path, f"cannot be written ({error.strerror or error})") from None

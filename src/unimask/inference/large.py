"""Images larger than memory: segmented tile by tile, with masks and maps on disk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from scipy.ndimage import find_objects
from torch import Tensor

from unimask.config.tasks import Task
from unimask.data.windows import LargeImage
from unimask.errors import DataError, needs_extra
from unimask.inference.joining import categories_united
from unimask.inference.segmenter import Segmenter
from unimask.inference.stitching import Stitched, Stitcher
from unimask.inference.storage import DiskStorage
from unimask.inference.tiles import Tile, tiling_of
from unimask.results.folder import JOINED, PARTS
from unimask.results.formats.table import as_csv, table_of
from unimask.results.found import Found, Record, document, found_in, json_writer, save_result, text_writer
from unimask.results.measures import Measures
from unimask.structures import Categories, Segments, Size

BLOCK = 256  # side of the blocks of the id map's TIFF; so many rows of it are in memory
READ_WIDTH = 2048  # tiles of one row are read together up to about this width


@dataclass(frozen=True, kw_only=True)
class LargeResult:
    """What was found in an image larger than memory; the id map is in the file."""

    task: Task
    size: Size  # (height, width)
    segments: tuple[Found, ...]  # by falling score
    map_file: Path

    def to_json(self) -> Record:
        """Return what `unimask predict --json` shows: the file holds the segments, which may be millions."""
        return {"task": self.task, "map": str(self.map_file), "segments": len(self.segments)}


def segment_large(
    segmenter: Segmenter,
    image: LargeImage,
    task: Task,
    folder: Path,
    name: str,
    *,
    table: bool = False,
    pixel_size: float | None = None,
    threshold: float | None = None,
    batch_size: int = 8,
    overwrite: bool = False,
    made_with: str = "",
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> LargeResult:
    """Segment an image in the segmenter's tiles; write NAME.segments.tif and NAME.json into the folder.

    With `table`, the measures of the segments are written where `results.folder.join_parts` finds them;
    `pixel_size` is as for `Result.to_table`, `overwrite` and `made_with` as for `results.found.save_result`.

    The TIFF is the id map, in tiles of 32-bit numbers; where instances overlap, it shows the one of the best
    score. Segments are joined by the rules of `stitching.Stitcher`. Both files appear when they are complete.

    Raises:
        DataError: the image cannot be read, or the files cannot be written.
        MissingPackageError: tifffile is not installed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        storage = DiskStorage(folder)
    except OSError as error:
        raise DataError(folder, f"results cannot be written here ({error.strerror or error})") from None
    tiles = tiling_of(image.size, segmenter.model_file.experiment.data).tiles
    unites = categories_united(segmenter.categories, task)
    stitcher = Stitcher(image.size, unites, overlapping=task == "instance", storage=storage)
    try:
        found = segmenter.find(_windows(image, tiles), task, threshold=threshold, batch_size=batch_size)
        for done, (tile, segments) in enumerate(zip(tiles, found, strict=True), start=1):
            assert isinstance(segments, Segments)
            stitcher.add(tile, segments)
            progress(done, len(tiles))
        id_map = IdMap(stitcher.stitch())
        records = id_map.found(segmenter.categories)
        content = document(
            task,
            image.size,
            segmenter.categories,
            map=f"{name}.segments.tif",
            segments=[one.to_json() for one in records],
        )
        files = {f"{name}.segments.tif": id_map.write, f"{name}.json": json_writer(content)}
        if table:
            measured = table_of(name, records, id_map.measured(image, len(records)), pixel_size)
            files[f"{PARTS}/{name}{JOINED['csv'].part}"] = text_writer(as_csv(measured))
        map_file, *_ = save_result(folder, name, files, overwrite=overwrite, made_with=made_with)
    except OSError as error:
        raise DataError(folder, f"results cannot be written here ({error.strerror or error})") from None
    finally:
        storage.close()
    return LargeResult(task=task, size=image.size, segments=records, map_file=map_file)


def _windows(image: LargeImage, tiles: Sequence[Tile]) -> Iterator[UInt8[Tensor, "3 _rows _columns"]]:
    """Yield the pixels of each tile; those of a row of tiles are read together, up to `READ_WIDTH`."""
    for _, group in groupby(tiles, lambda tile: (tile.window[0], tile.window[1].start // READ_WIDTH)):
        run = [tile.window for tile in group]
        rows, left = run[0][0], run[0][1].start
        block = image.read(rows, slice(left, run[-1][1].stop))
        for _, columns in run:
            yield block[:, :, columns.start - left : columns.stop - left]


class IdMap:
    """The id map of joined segments, in their storage: 1, 2, ... by falling score; 0 is none."""

    def __init__(self, stitched: Stitched) -> None:
        """Number the segments and measure them."""
        self._size, self._storage = stitched.size, stitched.storage
        self._found = stitched.found()
        self._areas = np.zeros(len(self._found), dtype=np.int64)
        self._edges = np.zeros((len(self._found), 4), dtype=np.int64)  # top, bottom, left, right
        self._map = self._storage.zeros(stitched.size, np.uint32)  # index + 1
        self._paint_things(stitched)
        self._paint_stuff(stitched)
        self._kept = [index for index in stitched.order() if self._areas[index]]
        self._numbers = np.zeros(len(self._found) + 1, dtype=np.uint32)
        self._numbers[np.array(self._kept, dtype=np.int64) + 1] = np.arange(1, len(self._kept) + 1)

    def found(self, categories: Categories) -> tuple[Found, ...]:
        """Return the segments that have pixels in the map, by their numbers."""
        records = []
        for number, index in enumerate(self._kept, start=1):
            label, score = self._found[index]
            top, bottom, left, right = self._edges[index].tolist()
            bbox = (left, top, right - left, bottom - top)
            score = float(np.float32(score))
            records.append(found_in(categories, number, label, score, int(self._areas[index]), bbox))
        return tuple(records)

    def measured(self, image: LargeImage, count: int) -> Float[ndarray, "measures segments"]:
        """Return the measures of each segment, by their numbers, computed a few rows at a time."""
        measures = Measures(count, self._size[1])
        for rows in self._strips():
            pixels = image.read(rows, slice(0, self._size[1])).numpy()
            measures.add(self._numbers[self._storage[self._map][rows]].astype(np.int64), pixels)
        return measures.table()

    def write(self, path: Path) -> None:
        """Write the map as a TIFF.

        Raises:
            MissingPackageError: tifffile is not installed.
        """
        with needs_extra("tiff", path):
            import tifffile
        tifffile.imwrite(
            path,
            self._blocks(),
            shape=self._size,
            dtype=np.uint32,
            tile=(BLOCK, BLOCK),
            compression="zlib",
            bigtiff=self._size[0] * self._size[1] > 2**29,
        )

    def _blocks(self) -> Iterator[ndarray]:
        for rows in self._strips():
            strip = self._numbers[self._storage[self._map][rows]]
            for left in range(0, self._size[1], BLOCK):
                block = np.zeros((BLOCK, BLOCK), dtype=np.uint32)
                part = strip[:, left : left + BLOCK]
                block[: part.shape[0], : part.shape[1]] = part
                yield block

    def _strips(self) -> Iterator[slice]:
        """Yield the rows of the map, a few at a time."""
        for top in range(0, self._size[0], BLOCK):
            yield slice(top, min(top + BLOCK, self._size[0]))

    def _paint_things(self, stitched: Stitched) -> None:
        """Write the things into the map, the best ones first; later ones get what is left."""
        first = len(stitched.stuff)
        for index in stitched.order():
            if index < first:
                continue
            thing, number = stitched.things[index - first]
            top, bottom, left, right = thing.box
            window = self._storage[self._map][top:bottom, left:right]
            free = self._storage[number] & (window == 0)
            window[free] = index + 1
            self._measure(index, free, top, left)

    def _paint_stuff(self, stitched: Stitched) -> None:
        """Write stuff where there is no thing."""
        for rows in self._strips():
            window = self._storage[self._map][rows]
            stuff = np.where(window == 0, self._storage[stitched.stuff_map][rows], np.uint16(0))
            window[stuff > 0] = stuff[stuff > 0]
            for index, box in enumerate(find_objects(stuff, max_label=len(stitched.stuff))):
                if box is not None:
                    self._measure(index, stuff[box] == index + 1, rows.start + box[0].start, box[1].start)

    def _measure(self, index: int, mask: ndarray, top: int, left: int) -> None:
        """Add the pixels of a mask, which starts at (top, left), to area and edges of a segment."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows) == 0:
            return
        edges = np.array([top + rows[0], top + rows[-1] + 1, left + columns[0], left + columns[-1] + 1])
        if self._areas[index]:
            old = self._edges[index]
            tops_and_lefts = np.minimum(edges[::2], old[::2])
            bottoms_and_rights = np.maximum(edges[1::2], old[1::2])
            edges = np.stack((tops_and_lefts, bottoms_and_rights), axis=1).ravel()
        self._edges[index] = edges
        self._areas[index] += int(mask.sum())

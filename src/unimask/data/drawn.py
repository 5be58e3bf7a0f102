"""Images with shapes, as annotation tools write them, which become segments here."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from numpy import ndarray
from torch import Tensor

from unimask.data.category_tables import default_color
from unimask.data.items import ItemDataset
from unimask.data.rasterise import LayerPainter, shape_pixels, truth_segments
from unimask.data.read import read_annotated_image, read_image
from unimask.data.reading import PLAIN, Reading
from unimask.errors import DataError, some_of
from unimask.structures import Categories, Detections, Sample, Segments, Size

ELLIPSE_POINTS = 72


@runtime_checkable  # the tests check argument types at run time
class Region(Protocol):
    """A set of pixels."""

    def pixels(self, size: Size) -> ndarray:
        """Return its pixels in an image of (height, width), as indices into the image flattened row by row.

        Raises:
            ValueError: the region does not fit the image.
        """


@dataclass(frozen=True, kw_only=True)
class Outline:
    """One or more closed polygons, united, in pixels or (`relative`) as shares of width and height."""

    rings: tuple[ndarray, ...]  # each x1, y1, x2, y2, ...
    relative: bool = False

    def pixels(self, size: Size) -> ndarray:
        """Fill the polygons as pycocotools does, clipped at the border of the image."""
        scale = np.array([size[1], size[0]], dtype=np.float64) if self.relative else np.ones(2)
        return shape_pixels(tuple((ring.reshape(-1, 2) * scale).ravel() for ring in self.rings), size)


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A mask of its own size with its upper left corner at (left, top) of the image."""

    mask: Bool[ndarray, "rows columns"]
    left: int
    top: int

    def pixels(self, size: Size) -> ndarray:
        """Place the mask; what lies outside of the image is cut off."""
        rows, columns = np.nonzero(self.mask)
        rows, columns = rows + self.top, columns + self.left
        inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
        found: ndarray = rows[inside] * size[1] + columns[inside]
        return found


@dataclass(frozen=True, kw_only=True)
class United:
    """Several regions that are one object."""

    regions: tuple[Region, ...]

    def pixels(self, size: Size) -> ndarray:
        """Return the pixels of any of them."""
        return np.unique(np.concatenate([region.pixels(size) for region in self.regions]))


def corners(region: Region, size: Size) -> tuple[float, ...]:
    """Return left, top, right and bottom of a region: of outlines to parts of a pixel, clipped at the border.

    A region without an area has none.

    Raises:
        ValueError: the region does not fit the image.
    """
    if isinstance(region, United):
        boxes = [found for one in region.regions if (found := corners(one, size))]
        outer = (min, min, max, max)
        return tuple(choose(side) for choose, side in zip(outer, zip(*boxes)))
    if isinstance(region, Outline):
        scale = np.array([size[1], size[0]], dtype=np.float64) if region.relative else np.ones(2)
        points = np.concatenate([ring.reshape(-1, 2) * scale for ring in region.rings])
        points = points.clip(0, [size[1], size[0]])
        box = (*points.min(0).tolist(), *points.max(0).tolist())
    else:
        rows, columns = np.divmod(region.pixels(size), size[1])
        if not rows.size:
            return ()
        box = (*map(float, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)),)
    return box if box[2] > box[0] and box[3] > box[1] else ()


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One object. `where` is the line or the name of its entry, for messages."""

    label: int
    region: Region
    where: str
    is_crowd: bool = False  # difficult: neither learned nor wrong to find


@dataclass(frozen=True, kw_only=True)
class DrawnImage:
    """An image and its objects. `source` is the annotation file; `size` is what it states, if anything."""

    image: Path
    source: Path
    size: tuple[Size, ...]  # none or one
    objects: tuple[Drawn, ...]
    void: tuple[Drawn, ...] = ()  # void pixels, where no object is
    fill: tuple[int, ...] = ()  # none, or the label of the pixels that are neither object nor void

    @property
    def image_id(self) -> str:
        """The stem of the image's file."""
        return self.image.stem

    @property
    def files(self) -> tuple[Path, ...]:
        """The image and the annotation file."""
        return self.image, self.source

    def stated_size(self) -> tuple[Size, ...]:
        """Return what the annotation file states."""
        return self.size

    def read(self, reading: Reading = PLAIN) -> Sample:
        """Read the image and fill its shapes; objects that cover no pixel are left out, others may overlap.

        Raises:
            DataError: the image cannot be read or is not of the size that was drawn on, or a shape does not
                fit.
        """
        image = self.pixels(reading)
        truth = self._filled((image.shape[1], image.shape[2]))
        kept = len(truth) if not self.fill else int((truth.labels != self.fill[0]).sum())
        return Sample(image=image, truth=truth, image_id=self.image_id, left_out=len(self.objects) - kept)

    def pixels(self, reading: Reading) -> UInt8[Tensor, "3 height width"]:
        """Read the image.

        Raises:
            DataError: it cannot be read or is not of the size that was drawn on.
        """
        if self.size:
            image = read_annotated_image(self.image, self.size[0], reading)
        else:
            image = read_image(self.image, reading)
        size = (image.shape[1], image.shape[2])
        if self.size and size != self.size[0]:
            height, width = self.size[0]
            raise DataError(
                self.source,
                f"is for an image of {width} x {height} pixels, but {self.image.name} has {size[1]} x "
                f"{size[0]}; use the images that were drawn on",
            )
        return image

    def _filled(self, size: Size) -> Segments:
        painter, labels, is_crowd = LayerPainter(size), list[int](), list[bool]()
        free = np.ones(size[0] * size[1], dtype=bool)
        for number, drawn in enumerate((*self.objects, *self.void)):
            try:
                pixels = drawn.region.pixels(size)
                free[pixels] = False
                if pixels.size and number < len(self.objects):
                    painter.add(pixels)
                    labels.append(drawn.label)
                    is_crowd.append(drawn.is_crowd)
            except ValueError as error:
                raise DataError(self.source, f"{drawn.where}: {error}") from None
        if self.fill and free.any():
            painter.add(np.flatnonzero(free))
            labels.append(self.fill[0])
            is_crowd.append(False)
        return truth_segments(painter.result(), labels, is_crowd)


@dataclass(frozen=True, kw_only=True)
class DrawnBoxes:
    """An image and the boxes of its objects, which are not rounded to whole pixels."""

    drawn: DrawnImage

    @property
    def image_id(self) -> str:
        """The stem of the image's file."""
        return self.drawn.image_id

    @property
    def files(self) -> tuple[Path, ...]:
        """The image and the annotation file."""
        return self.drawn.files

    def stated_size(self) -> tuple[Size, ...]:
        """Return what the annotation file states."""
        return self.drawn.size

    def read(self, reading: Reading = PLAIN) -> Sample:
        """Read the image; objects without an area in it are left out.

        Raises:
            DataError: as for `DrawnImage`.
        """
        image = self.drawn.pixels(reading)
        found = []
        for one in self.drawn.objects:
            try:
                box = corners(one.region, (image.shape[1], image.shape[2]))
            except ValueError as error:
                raise DataError(self.drawn.source, f"{one.where}: {error}") from None
            if box:
                found.append((box, one))
        boxes = torch.tensor([box for box, _ in found], dtype=torch.float32).reshape(-1, 4)
        truth = Detections(
            boxes=boxes,
            labels=torch.tensor([one.label for _, one in found], dtype=torch.int64),
            scores=torch.ones(len(found)),
            areas=(boxes[:, 2:] - boxes[:, :2]).prod(1),
            is_crowd=torch.tensor([one.is_crowd for _, one in found], dtype=torch.bool),
        )
        left_out = len(self.drawn.objects) - len(found)
        return Sample(image=image, truth=truth, image_id=self.image_id, left_out=left_out)


def holds_only_boxes(dataset: ItemDataset) -> bool:
    """Return whether all that is drawn are upright rectangles: a set of boxes, not of masks."""
    items = dataset.whole or dataset.items
    drawn = [one for one in items if isinstance(one, DrawnImage)]
    regions = [object_.region for one in drawn for object_ in one.objects]
    return len(drawn) == len(items) and bool(regions) and all(map(is_box, regions))


def is_box(region: Region) -> bool:
    """Return whether a region is an upright rectangle."""
    if not isinstance(region, Outline) or len(region.rings) != 1 or region.rings[0].size != 8:
        return False
    left, top, right, upper, far, bottom, near, lower = region.rings[0].tolist()
    return (left, top, right, bottom) == (near, upper, far, lower)


def with_boxes(dataset: ItemDataset) -> ItemDataset:
    """Return the data set with the boxes of what is drawn in place of its masks."""
    items = tuple(DrawnBoxes(drawn=one) if isinstance(one, DrawnImage) else one for one in dataset.items)
    return replace(dataset, items=items)


def drawn_dataset(
    names: Sequence[str], images: Iterable[DrawnImage], *, left_out: tuple[str, ...] = ()
) -> ItemDataset:
    """Return a sample for each image; the categories are the names of the tool, all of them things.

    Parts of shapes beyond the images are cut off, which a sentence beside `left_out` says.
    """
    images = tuple(images)
    categories = Categories(
        names=tuple(names),
        is_thing=(True,) * len(names),
        file_ids=tuple(range(len(names))),
        colors=tuple(default_color(index) for index in range(len(names))),
    )
    return ItemDataset(categories=categories, items=images, left_out=(*left_out, *_said_beyond(images)))


def said_without_area(kinds: Counter[str], what: str) -> tuple[str, ...]:
    """Say how many shapes of each kind without a pixel are left out; nothing if there are none."""
    counts = [f"{count} of kind {kind}" for kind, count in sorted(kinds.items())]
    return (f"{what} without an area are left out: {some_of(counts)}",) * bool(counts)


def reaches_beyond(ring: ndarray, size: Size) -> bool:
    """Return whether a polygon in pixels reaches beyond the image by more than a pixel, which is rounding."""
    if ring.min() >= -1 and ring.max() <= min(size) + 1:
        return False
    x, y = ring[::2], ring[1::2]
    return bool(x.min() < -1 or y.min() < -1 or x.max() > size[1] + 1 or y.max() > size[0] + 1)


def said_beyond(count: int, first: str) -> tuple[str, ...]:
    """Say how many objects reach beyond their images, and the file of the first; nothing if none does."""
    what = "1 object reaches beyond its image" if count == 1 else f"{count} objects reach beyond their images"
    said = f"{what}, and what is outside is cut off (the first is in {first}); drawn on another size?"
    return (said,) * bool(count)


def _said_beyond(images: Sequence[DrawnImage]) -> tuple[str, ...]:
    beyond = [
        image
        for image in images
        for drawn in image.objects
        for size in image.size
        if any(reaches_beyond(ring, size) for ring in _rings(drawn.region))
    ]
    return said_beyond(len(beyond), beyond[0].source.name if beyond else "")


def _rings(region: Region) -> tuple[ndarray, ...]:
    """Return the outlines of a region in pixels; none where it has none, or only shares."""
    if isinstance(region, United):
        return tuple(ring for one in region.regions for ring in _rings(one))
    return region.rings if isinstance(region, Outline) and not region.relative else ()


def ring(source: Path, where: str, numbers: Sequence[object]) -> ndarray:
    """Read a polygon from x1, y1, x2, y2, ...; numbers may be text.

    Raises:
        DataError: a number is not finite, or they are not x and y of at least three points.
    """
    try:
        values = np.array([float(str(number)) for number in numbers], dtype=np.float64)
    except ValueError:
        raise DataError(source, f"{where}: a point of a polygon is no number ({some_of(numbers)})") from None
    if values.size < 6 or values.size % 2:
        raise DataError(
            source, f"{where}: a polygon has {values.size} numbers; expected x and y of at least 3 points"
        )
    if not np.isfinite(values).all():
        raise DataError(source, f"{where}: a polygon has a coordinate that is no finite number")
    return values


def box_ring(left: float, top: float, right: float, bottom: float) -> ndarray:
    """Return a rectangle as a polygon."""
    return np.array([left, top, right, top, right, bottom, left, bottom], dtype=np.float64)


def ellipse_ring(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> ndarray:
    """Return an ellipse around (x, y) as a polygon, turned clockwise."""
    angles = np.linspace(0, 2 * np.pi, ELLIPSE_POINTS, endpoint=False)
    across, down = radius_x * np.cos(angles), radius_y * np.sin(angles)
    turn = np.deg2rad(degrees)
    points = (
        x + across * np.cos(turn) - down * np.sin(turn),
        y + across * np.sin(turn) + down * np.cos(turn),
    )
    return np.stack(points, axis=1).ravel()

"""COCO instances: a JSON of polygons, run-length masks and boxes beside a folder of images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy import ndarray

from unimask.data.drawn import reaches_beyond, said_beyond
from unimask.data.formats.coco_file import (
    CocoImage,
    Record,
    annotations_of_images,
    flag,
    image_folders,
    load_json,
    read_categories,
    read_coco_image,
    read_images,
    records,
    used_categories,
    whole,
)
from unimask.data.items import Item, ItemDataset
from unimask.data.rasterise import LayerPainter, Shape, shape_pixels, truth_segments
from unimask.data.reading import PLAIN, Reading
from unimask.errors import DataError, OnlyBoxesError
from unimask.ops.boxes import clip_boxes
from unimask.structures import Detections, Sample, Size

_COMPARED = 1000  # annotations whose boxes are compared with their polygons

_NO_MASK = "{what} has no mask, only a box; segmentation needs polygons or run lengths"

Entries = Sequence[tuple[Record, int]]
"""The annotations of an image in the order of the file, each with its label."""


def open_instances(path: Path, content: Record | None = None, *, folders: Sequence[Path] = ()) -> ItemDataset:
    """Open the masks of a COCO JSON; they are decoded when a sample is asked for.

    Every image of the file is a sample, also without instances; they come in the order of their ids, in which
    pycocotools walks them. Instances keep the order of the file, and the areas that it states. What lies
    outside of the image is cut off. Instances that cover no pixel (too thin, or at the border) are left out,
    but one that lies wholly outside is an error. Instances may overlap: the ground truth then has several
    layers.

    Images are searched in `folders` first, then in those of `image_folders`.

    Raises:
        DataError: the file, one of its entries or an image cannot be used; entries are named by their id.
    """
    return _open(path, content, folders, _with_masks)


def open_boxes(path: Path, content: Record | None = None, *, folders: Sequence[Path] = ()) -> ItemDataset:
    """Open the boxes that a COCO JSON states, without its masks; images as in `open_instances`.

    Boxes keep the order of the file; what lies outside of the image is cut off, and boxes without width or
    height are left out. Areas are those that the file states, of masks where it has some. Objects marked
    `iscrowd`, or `difficult` as in PASCAL VOC, are crowd: nothing is learned from them, and finding them is
    neither right nor wrong.

    Raises:
        DataError: as `open_instances`.
    """
    return _open(path, content, folders, _with_boxes)


@runtime_checkable  # the tests check argument types at run time
class _CocoItem(Item, Protocol):
    """An image of a file, which counts its annotations that reach beyond it."""

    @property
    def beyond(self) -> int: ...


def _open(
    path: Path,
    content: Record | None,
    folders: Sequence[Path],
    item: Callable[[Path, CocoImage, Entries], _CocoItem],
) -> ItemDataset:
    content = load_json(path) if content is None else content
    entries = records(path, content, "annotations")
    categories = read_categories(path, content, used=used_categories(entries))
    images = sorted(read_images(path, content, [*folders, *image_folders(path)]), key=_by_id)
    grouped = annotations_of_images(path, entries, images, categories)
    said: tuple[str, ...] = ()
    if item is _with_masks and not any(entry.get("segmentation") for entry in entries):
        raise OnlyBoxesError(path, _NO_MASK.format(what=f"annotation {entries[0].get('id')}"))
    if item is _with_boxes:
        solid = [entry for entry in entries if not _is_flat(entry)]
        flat = len(entries) - len(solid)
        grouped = {id_: [one for one in own if not _is_flat(one[0])] for id_, own in grouped.items()}
        said = (f"{flat} boxes of {path.name} have no width or no height and are left out",) * bool(flat)
        said += _said_other_boxes(path, solid)
    items = tuple(item(path, image, grouped[image.id]) for image in images)
    beyond = sum(one.beyond for one in items)
    return ItemDataset(categories=categories, items=items, left_out=(*said, *said_beyond(beyond, path.name)))


def _by_id(image: CocoImage) -> tuple[bool, int, str]:
    """Return a key for sorting ids: numbers first, then text."""
    is_text = isinstance(image.id, str)
    return is_text, 0 if is_text else int(image.id), str(image.id)


def _stated_area(entry: Record) -> float:
    """Return the area that an annotation states, in pixels; NaN where it states none."""
    area = entry.get("area")
    if isinstance(area, int | float) and 0 < area < 1e30:  # 0 is written where it is not known
        return float(area)
    return math.nan


def _is_flat(entry: Record) -> bool:
    box = entry.get("bbox")
    return isinstance(box, list) and len(box) == 4 and (box[2] == 0 or box[3] == 0)


def _said_other_boxes(path: Path, entries: Sequence[Record]) -> tuple[str, ...]:
    """Say how many of the first boxes are not those of their polygons, if a tenth or more are not."""
    both = [(one, extent) for one in entries[:_COMPARED] if (extent := _extent(one)) is not None]
    other = [one for one, extent in both if _differs(one.get("bbox"), extent)]
    if not other or 10 * len(other) < len(both):
        return ()
    first = f"annotation {other[0].get('id')}: {other[0]['bbox']}"
    return (
        f"{len(other)} of {len(both)} boxes of {path.name} are not those of their masks (the first: "
        f"{first}); are they two corners instead of [x, y, width, height], or from another size?",
    )


def _extent(entry: Record) -> ndarray | None:
    """Return left, top, right and bottom of the polygons of an annotation; None where it has none."""
    given = entry.get("segmentation")
    if not isinstance(given, list):
        return None
    try:
        numbers = np.concatenate([np.asarray(ring, dtype=np.float64).ravel() for ring in given])
    except (TypeError, ValueError):  # what cannot be used as a mask
        return None
    if numbers.size % 2 or not np.isfinite(numbers).all():
        return None
    x, y = numbers[::2], numbers[1::2]
    return np.array([x.min(), y.min(), x.max(), y.max()])


def _differs(box: object, extent: ndarray) -> bool:
    """Return whether a side of a box is more than two pixels and a tenth of the box away from `extent`."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(n, int | float) for n in box):
        return False
    x, y, width, height = box
    far = np.abs(np.array([x, y, x + width, y + height]) - extent).max()
    return bool(far > max(2, (extent[2:] - extent[:2]).max() / 10))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Instance:
    id: int
    label: int
    is_crowd: bool
    area: float  # as stated; not a number where it is not
    shape: Shape


@dataclass(frozen=True, kw_only=True, slots=True)
class _WithMasks:
    source: Path
    image: CocoImage
    instances: tuple[_Instance, ...]

    @property
    def beyond(self) -> int:
        """How many instances reach beyond the image."""
        outlines = (one.shape for one in self.instances if isinstance(one.shape, tuple))
        return sum(any(reaches_beyond(ring, self.image.size) for ring in rings) for rings in outlines)

    @property
    def image_id(self) -> str:
        return self.image.path.stem

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.image.path,)

    def stated_size(self) -> tuple[Size, ...]:
        return (self.image.size,)

    def read(self, reading: Reading = PLAIN) -> Sample:
        image = read_coco_image(self.source, self.image, reading)
        painter = LayerPainter(self.image.size)
        kept, areas = [], []
        for instance in self.instances:
            try:
                pixels = shape_pixels(instance.shape, self.image.size)
                if pixels.size:
                    painter.add(pixels)
                    kept.append(instance)
                    areas.append(float(pixels.size) if math.isnan(instance.area) else instance.area)
            except ValueError as error:
                raise DataError(self.source, f"annotation {instance.id}: {error}; export it again") from None
        labels, crowd = [one.label for one in kept], [one.is_crowd for one in kept]
        truth = truth_segments(painter.result(), labels, crowd, areas)
        left_out = len(self.instances) - len(kept)
        return Sample(image=image, truth=truth, image_id=self.image_id, left_out=left_out)


def _with_masks(path: Path, image: CocoImage, entries: Entries) -> _WithMasks:
    instances = tuple(_instance(path, entry, label, image.size) for entry, label in entries)
    return _WithMasks(source=path, image=image, instances=instances)


def _instance(path: Path, entry: Record, label: int, size: Size) -> _Instance:
    what = f"annotation {entry['id']}"
    return _Instance(
        id=whole(path, entry, "id", what),
        label=label,
        is_crowd=_is_crowd(path, entry, what),
        area=_stated_area(entry),
        shape=_shape(path, entry, what, size),
    )


def _is_crowd(path: Path, entry: Record, what: str) -> bool:
    """Return whether an annotation is a crowd, or difficult as in PASCAL VOC: nothing is learned from it."""
    return flag(path, entry, "iscrowd", what) or flag(path, entry, "difficult", what)


def _shape(path: Path, entry: Record, what: str, size: Size) -> Shape:
    """Return the segmentation of an annotation in compact form; run lengths are decoded later."""
    given = entry.get("segmentation")
    if isinstance(given, dict):
        return _run_lengths(path, given, what, size)
    if isinstance(given, str) and given:
        raise DataError(
            path, f"{what}: its segmentation is text ({given!r}); write it as JSON, without quotes"
        )
    if not isinstance(given, list) or not given:
        raise DataError(path, _NO_MASK.format(what=what))
    if all(isinstance(number, int | float) for number in given):
        given = [given]  # one polygon that is not in a list of its own
    try:
        rings = tuple(np.asarray(ring, dtype=np.float64) for ring in given)
    except (TypeError, ValueError):
        raise DataError(
            path, f"{what}: a polygon is no list of numbers; expected [x1, y1, x2, y2, ...]"
        ) from None
    if len(rings) > 2 and all(ring.shape == (2,) for ring in rings):
        rings = (np.concatenate(rings),)  # one polygon of pairs
    rings = tuple(ring.ravel() if ring.ndim == 2 and ring.shape[1] == 2 else ring for ring in rings)
    for ring in rings:
        if ring.ndim != 1 or ring.size < 6 or ring.size % 2:
            raise DataError(
                path, f"{what}: a polygon has {ring.size} numbers; expected x and y of at least 3 points"
            )
        if not np.isfinite(ring).all():
            raise DataError(
                path, f"{what}: a polygon has a coordinate that is no finite number; export it again"
            )
    if all(_is_outside(ring, size) for ring in rings):
        raise _outside(path, what, size)
    return rings


def _is_outside(ring: ndarray, size: Size) -> bool:
    """Return whether a polygon lies more than a pixel beyond a border: so much is no rounding."""
    x, y = ring[::2], ring[1::2]
    return bool(x.max() < -1 or y.max() < -1 or x.min() > size[1] + 1 or y.min() > size[0] + 1)


def _run_lengths(path: Path, given: Record, what: str, size: Size) -> Shape:
    counts, stated = given.get("counts"), given.get("size")
    if not isinstance(stated, list) or tuple(stated) != size:
        raise DataError(
            path,
            f"{what}: its mask is for an image of (height, width) {stated}, but the image is "
            f"{list(size)}; export it again",
        )
    if isinstance(counts, str):
        return counts
    if isinstance(counts, list) and all(isinstance(run, int) for run in counts):
        return np.asarray(counts, dtype=np.int64)
    raise DataError(path, f"{what}: run lengths 'counts' are neither a string nor a list of integers")


def _outside(path: Path, what: str, size: Size) -> DataError:
    return DataError(
        path,
        f"{what} lies outside of its image ({size[1]} x {size[0]} pixels); was it drawn on "
        "an image of another size? Export it again in pixels of this one, or remove it",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Box:
    corners: tuple[float, ...]  # left, top, right, bottom; cut off at the border
    beyond: bool  # whether it reached more than a pixel beyond it
    area: float
    label: int
    is_crowd: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _WithBoxes:
    source: Path
    image: CocoImage
    boxes: tuple[_Box, ...]

    @property
    def beyond(self) -> int:
        """How many boxes reach beyond the image."""
        return sum(box.beyond for box in self.boxes)

    @property
    def image_id(self) -> str:
        return self.image.path.stem

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.image.path,)

    def stated_size(self) -> tuple[Size, ...]:
        return (self.image.size,)

    def read(self, reading: Reading = PLAIN) -> Sample:
        truth = Detections(
            boxes=torch.tensor([box.corners for box in self.boxes], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([box.label for box in self.boxes], dtype=torch.int64),
            scores=torch.ones(len(self.boxes)),
            areas=torch.tensor([box.area for box in self.boxes], dtype=torch.float64),
            is_crowd=torch.tensor([box.is_crowd for box in self.boxes], dtype=torch.bool),
        )
        image = read_coco_image(self.source, self.image, reading)
        return Sample(image=image, truth=truth, image_id=self.image_id)


def _with_boxes(path: Path, image: CocoImage, entries: Entries) -> _WithBoxes:
    boxes = tuple(_box(path, entry, label, image.size) for entry, label in entries)
    return _WithBoxes(source=path, image=image, boxes=boxes)


def _box(path: Path, entry: Record, label: int, size: Size) -> _Box:
    what, given = f"annotation {entry['id']}", entry.get("bbox")
    numbers = given if isinstance(given, list) and all(isinstance(n, int | float) for n in given) else []
    if len(numbers) != 4 or not all(abs(number) < float("inf") for number in numbers):
        raise DataError(path, f"{what} has bbox {given!r}; expected [x, y, width, height] in pixels")
    x, y, width, height = numbers
    if width < 0 or height < 0:
        raise DataError(path, f"{what} has a box of {width} x {height} pixels; correct or remove it")
    corners = torch.tensor([x, y, x + width, y + height], dtype=torch.float64)
    left, top, right, bottom = clip_boxes(corners, size).tolist()
    if right <= left or bottom <= top:
        raise _outside(path, what, size)
    area = _stated_area(entry)
    return _Box(
        corners=(left, top, right, bottom),
        beyond=reaches_beyond(corners.numpy(), size),
        area=(right - left) * (bottom - top) if math.isnan(area) else area,
        label=label,
        is_crowd=_is_crowd(path, entry, what),
    )

"""COCO instances: a JSON of polygons and run-length masks beside a folder of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from unimask.data.formats.coco_file import (
    ImageId,
    Record,
    annotations_of_images,
    load_json,
    picture_folders,
    read_categories,
    read_coco_picture,
    read_images,
    records,
    used_categories,
    whole,
)
from unimask.data.rasterise import LayerPainter, Shape, shape_pixels, truth_segments
from unimask.errors import DataError
from unimask.structures import Categories, Sample, Size


@dataclass(frozen=True, kw_only=True, slots=True)
class _Instance:
    id: int
    label: int
    is_crowd: bool
    shape: Shape


class CocoInstances:
    """The pictures and instances of one COCO JSON; masks are decoded when a sample is asked for.

    Every picture of the file is a sample, also without instances. Instances keep the order of the file. What
    lies outside of the picture is cut off. Instances that cover no pixel (too thin, or at the border) are
    left out, but one that lies wholly outside is an error. Instances may overlap: the truth then has several
    layers.

    Pictures are looked for in `folders` first, then where `picture_folders` says.

    Raises:
        DataError: the file, one of its entries or a picture cannot be used; entries are named by their id.
    """

    def __init__(
        self, path: str | Path, content: Record | None = None, *, folders: Sequence[Path] = ()
    ) -> None:
        self._path = Path(path)
        content = load_json(self._path) if content is None else content
        entries = records(self._path, content, "annotations")
        self._categories = read_categories(self._path, content, used=used_categories(entries))
        self._images = read_images(self._path, content, [*folders, *picture_folders(self._path)])
        self._instances = self._group(entries)

    @property
    def categories(self) -> Categories:
        """The categories of the file, in its order."""
        return self._categories

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The id of every sample, without reading it."""
        return tuple(image.path.stem for image in self._images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        image = self._images[index]
        instances = self._instances[image.id]
        painter = LayerPainter(image.size)
        kept = []
        for instance in instances:
            try:
                pixels = shape_pixels(instance.shape, image.size)
                if pixels.size:
                    painter.add(pixels)
                    kept.append(instance)
            except ValueError as error:
                raise DataError(self._path, f"annotation {instance.id}: {error}; export it again") from None
        segments = truth_segments(painter.result(), [i.label for i in kept], [i.is_crowd for i in kept])
        return Sample(image=read_coco_picture(self._path, image), truth=segments, image_id=image.path.stem)

    def _group(self, entries: Sequence[Record]) -> dict[ImageId, list[_Instance]]:
        """The instances of each picture, checked."""
        grouped = annotations_of_images(self._path, entries, self._images, self._categories)
        return {
            image.id: [self._instance(entry, label, image.size) for entry, label in grouped[image.id]]
            for image in self._images
        }

    def _instance(self, entry: Record, label: int, size: Size) -> _Instance:
        what = f"annotation {entry['id']}"
        return _Instance(
            id=whole(self._path, entry, "id", what),
            label=label,
            is_crowd=bool(entry.get("iscrowd", 0)),
            shape=_shape(self._path, entry, what, size),
        )


def _shape(path: Path, entry: Record, what: str, size: Size) -> Shape:
    """The segmentation of an annotation in compact form; run lengths are decoded later."""
    given = entry.get("segmentation")
    if isinstance(given, dict):
        return _run_lengths(path, given, what, size)
    if not isinstance(given, list) or not given:
        raise DataError(path, f"{what} has no mask, only a box; segmentation needs polygons or run lengths")
    try:
        rings = tuple(np.asarray(ring, dtype=np.float64) for ring in given)
    except (TypeError, ValueError):
        raise DataError(
            path, f"{what}: a polygon is no list of numbers; expected [x1, y1, x2, y2, ...]"
        ) from None
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
        raise DataError(
            path,
            f"{what} lies outside of its picture ({size[1]} x {size[0]} pixels); was it drawn on "
            "a picture of another size? Export it again in pixels of this one, or remove it",
        )
    return rings


def _is_outside(ring: ndarray, size: Size) -> bool:
    """Whether a polygon lies more than a pixel beyond a border: so much is no rounding."""
    x, y = ring[::2], ring[1::2]
    return bool(x.max() < -1 or y.max() < -1 or x.min() > size[1] + 1 or y.min() > size[0] + 1)


def _run_lengths(path: Path, given: Record, what: str, size: Size) -> Shape:
    counts, stated = given.get("counts"), given.get("size")
    if not isinstance(stated, list) or tuple(stated) != size:
        raise DataError(
            path,
            f"{what}: its mask is for a picture of (height, width) {stated}, but the picture is "
            f"{list(size)}; export it again",
        )
    if isinstance(counts, str):
        return counts
    if isinstance(counts, list) and all(isinstance(run, int) for run in counts):
        return np.asarray(counts, dtype=np.int64)
    raise DataError(path, f"{what}: run lengths 'counts' are neither a string nor a list of integers")

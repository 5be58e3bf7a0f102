"""COCO panoptic: a JSON of segments, a folder of PNGs with their ids, and a folder of images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray

from unimask.data.formats.coco_file import (
    CocoImage,
    ImageId,
    Record,
    flag,
    image_folders,
    image_id,
    load_json,
    read_categories,
    read_coco_image,
    read_images,
    records,
    split_of,
    whole,
)
from unimask.data.items import ItemDataset
from unimask.data.naming import Folders, spellings
from unimask.data.pillow import stated_size
from unimask.data.rasterise import truth_segments
from unimask.data.read import read_panoptic_ids
from unimask.data.reading import PLAIN, Reading
from unimask.errors import DataError, some_of
from unimask.files import is_file
from unimask.ops.id_maps import MOST_SEGMENTS, renumber
from unimask.structures import Sample, Segments, Size

_IDS = 256**3  # what three channels can hold


def open_panoptic(
    path: Path, content: Record | None = None, *, folders: Sequence[Path] = (), strict: bool = True
) -> ItemDataset:
    """Open a COCO panoptic JSON; PNGs are decoded when a sample is asked for.

    Images without an entry in `annotations` are left out. Pixels of id 0 are void. The PNGs lie in a
    folder of the JSON's name (`panoptic_train2017/`), or in `panoptic/`, beside the JSON or one folder up.
    Images are searched in `folders` first, then in those of `image_folders`.

    Segments without a pixel and ids that the JSON does not list are errors, unless `strict` is off: then the
    former are left out and the latter void.

    Raises:
        DataError: the JSON, a PNG or an image cannot be used, or a PNG does not fit its entry.
    """
    content = load_json(path) if content is None else content
    entries = records(path, content, "annotations")
    categories = read_categories(path, content, used=frozenset())
    images = {image.id: image for image in read_images(path, content, [*folders, *image_folders(path)])}
    folder, files = _find_pngs(path, entries), Folders()
    labels = {file_id: label for label, file_id in enumerate(categories.file_ids)}
    items: dict[ImageId, _PanopticItem] = {}
    for entry in entries:
        number = image_id(path, entry, "image_id", f"annotation {entry.get('file_name')!r}")
        if number not in images:
            raise DataError(path, f"an annotation is for image {number}, which is not in 'images'")
        if number in items:
            raise DataError(path, f"image {number} has two annotations; a panoptic file has one each")
        name = str(entry.get("file_name", ""))
        png = next((found for one in spellings(name) if (found := files.file(folder, one))), None)
        if png is None:
            raise DataError(folder / name, f"no such file, but {path.name} names it for image {number}")
        items[number] = _item(path, entry, images[number], png, labels, strict)
    stated = any("isthing" in category for category in records(path, content, "categories"))
    said = (f"the categories of {path.name} do not say which are things (isthing): all are taken as things",)
    return ItemDataset(categories=categories, items=tuple(items.values()), left_out=said * (not stated))


@dataclass(frozen=True, kw_only=True, slots=True)
class _PanopticItem:
    source: Path
    image: CocoImage
    png: Path
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    is_crowd: tuple[bool, ...]
    strict: bool

    @property
    def image_id(self) -> str:
        return self.image.path.stem

    @property
    def files(self) -> tuple[Path, ...]:
        return self.image.path, self.png

    def stated_size(self) -> tuple[Size, ...]:
        return (self.image.size,)

    def read(self, reading: Reading = PLAIN) -> Sample:
        image = read_coco_image(self.source, self.image, reading)
        return Sample(image=image, truth=self._segments(), image_id=self.image_id)

    def _segments(self) -> Segments:
        size = stated_size(self.png, self.image.size)
        if size != self.image.size:
            height, width = self.image.size
            raise DataError(
                self.png,
                f"is {size[1]} x {size[0]} pixels, but its image is {width} x {height} "
                f"({self.source.name}, image {self.image.id}); PNG and JSON must be of one export",
            )
        ids = read_panoptic_ids(self.png)
        table = np.zeros(_IDS, dtype=np.int16)
        table[list(self.ids)] = np.arange(1, len(self.ids) + 1)
        numbers = table[ids]
        if self.strict:
            self._check_ids(ids, numbers)
        segments = truth_segments(torch.from_numpy(numbers[None]), self.labels, self.is_crowd)
        return segments if self.strict else renumber(segments, segments.areas() > 0)

    def _check_ids(self, ids: ndarray, numbers: ndarray) -> None:
        unknown = np.unique(ids[(numbers == 0) & (ids != 0)])
        if unknown.size:
            raise DataError(
                self.png,
                f"has {unknown.size} segment ids that {self.source.name} does not list for image "
                f"{self.image.id}, the first is {unknown[0]}; PNG and JSON must be of one export",
            )
        counts = np.bincount(numbers.ravel(), minlength=len(self.ids) + 1)[1:]
        absent = [id_ for id_, count in zip(self.ids, counts) if count == 0]
        if absent:
            raise DataError(
                self.png,
                f"has no pixel of {len(absent)} segments that {self.source.name} lists for image "
                f"{self.image.id}, the first is {absent[0]}; PNG and JSON must be of one export",
            )


def _find_pngs(path: Path, entries: Sequence[Record]) -> Path:
    names = [str(entry.get("file_name", "")) for entry in entries[:20]]
    here = path.parent
    inside = [path.stem, "panoptic", f"panoptic_{split_of(path)}", "panoptic_masks", "masks"]
    folders = list(dict.fromkeys(root / name for root in (here, here.parent) for name in inside))
    folders += [folder / split_of(path) for folder in folders] + [here]
    for folder in folders:
        if any(is_file(folder / name) for name in names):
            return folder
    packed = path.with_suffix(".zip")
    help_ = f"; unzip {packed.name}" if packed.is_file() else ""
    raise DataError(
        path, f"its panoptic PNGs ({names[0]!r}, ...) are not found; looked in {some_of(folders, 5)}{help_}"
    )


def _item(
    path: Path, entry: Record, image: CocoImage, png: Path, labels: Mapping[int, int], strict: bool
) -> _PanopticItem:
    where = f"a segment of image {image.id}"
    listed = entry.get("segments_info")
    if not isinstance(listed, list) or not all(isinstance(segment, dict) for segment in listed):
        raise DataError(path, f"the annotation of image {image.id} has no list 'segments_info'")
    ids = tuple(whole(path, segment, "id", where) for segment in listed)
    wrong = [number for number, count in Counter(ids).items() if not 0 < number < _IDS or count > 1]
    if wrong or len(ids) > MOST_SEGMENTS:
        problem = f"id {wrong[0]} twice, or not from 1 to {_IDS - 1}" if wrong else f"{len(ids)} segments"
        raise DataError(path, f"image {image.id} has {problem}; export it again")
    categories = tuple(whole(path, segment, "category_id", where) for segment in listed)
    for number, category in zip(ids, categories):
        if category not in labels:
            raise DataError(
                path,
                f"segment {number} of image {image.id} has category {category}, "
                "which is not in 'categories'; add it there",
            )
    return _PanopticItem(
        source=path,
        image=image,
        png=png,
        ids=ids,
        labels=tuple(labels[category] for category in categories),
        is_crowd=tuple(flag(path, segment, "iscrowd", where) for segment in listed),
        strict=strict,
    )

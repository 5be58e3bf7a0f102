"""COCO panoptic: a JSON of segments, a folder of PNGs with their ids, and a folder of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray

from unimask.data.formats.coco_file import (
    CocoImage,
    ImageId,
    Record,
    image_id,
    load_json,
    picture_folders,
    read_categories,
    read_coco_picture,
    read_images,
    records,
    split_of,
    whole,
)
from unimask.data.rasterise import truth_segments
from unimask.data.read import read_panoptic_ids
from unimask.errors import DataError, some_of
from unimask.ops.id_maps import MOST_SEGMENTS, renumber
from unimask.structures import Categories, Sample, Segments

_IDS = 256**3  # what three channels can hold


@dataclass(frozen=True, kw_only=True, slots=True)
class _PanopticRecord:
    image: CocoImage
    png: Path
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    is_crowd: tuple[bool, ...]


class CocoPanoptic:
    """The annotated pictures of a COCO panoptic JSON; PNGs are decoded when a sample is asked for.

    Pictures without an entry in `annotations` are left out. Pixels of id 0 are void. The PNGs lie in a
    folder of the JSON's name (`panoptic_train2017/`), or in `panoptic/`, beside the JSON or one folder up.
    Pictures are looked for in `folders` first, then where `picture_folders` says.

    Segments without a pixel and ids that the JSON does not list are errors, unless `strict` is off: then the
    former are left out and the latter void.

    Raises:
        DataError: the JSON, a PNG or a picture cannot be used, or a PNG does not fit its entry.
    """

    def __init__(
        self,
        path: str | Path,
        content: Record | None = None,
        *,
        folders: Sequence[Path] = (),
        strict: bool = True,
    ) -> None:
        self._path, self._strict = Path(path), strict
        content = load_json(self._path) if content is None else content
        entries = records(self._path, content, "annotations")
        self._categories = read_categories(self._path, content, used=frozenset())
        images = read_images(self._path, content, [*folders, *picture_folders(self._path)])
        folder = self._find_pngs(entries)
        self._pictures = self._group(entries, images, folder)

    @property
    def categories(self) -> Categories:
        """The categories of the file, in its order."""
        return self._categories

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The id of every sample, without reading it."""
        return tuple(picture.image.path.stem for picture in self._pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        picture = self._pictures[index]
        image = read_coco_picture(self._path, picture.image)
        return Sample(image=image, truth=self._segments(picture), image_id=picture.image.path.stem)

    def _segments(self, picture: _PanopticRecord) -> Segments:
        ids = read_panoptic_ids(picture.png)
        if ids.shape != picture.image.size:
            height, width = picture.image.size
            raise DataError(
                picture.png,
                f"is {ids.shape[1]} x {ids.shape[0]} pixels, but its picture is {width} x {height} "
                f"({self._path.name}, image {picture.image.id}); PNG and JSON must be of one export",
            )
        table = np.zeros(_IDS, dtype=np.int16)
        table[list(picture.ids)] = np.arange(1, len(picture.ids) + 1)
        numbers = table[ids]
        if self._strict:
            self._check_ids(picture, ids, numbers)
        segments = truth_segments(torch.from_numpy(numbers[None]), picture.labels, picture.is_crowd)
        return segments if self._strict else renumber(segments, segments.areas() > 0)

    def _check_ids(self, picture: _PanopticRecord, ids: ndarray, numbers: ndarray) -> None:
        unknown = np.unique(ids[(numbers == 0) & (ids != 0)])
        if unknown.size:
            raise DataError(
                picture.png,
                f"has {unknown.size} segment ids that {self._path.name} does not list for image "
                f"{picture.image.id}, the first is {unknown[0]}; PNG and JSON must be of one export",
            )
        counts = np.bincount(numbers.ravel(), minlength=len(picture.ids) + 1)[1:]
        absent = [id_ for id_, count in zip(picture.ids, counts) if count == 0]
        if absent:
            raise DataError(
                picture.png,
                f"has no pixel of {len(absent)} segments that {self._path.name} lists for image "
                f"{picture.image.id}, the first is {absent[0]}; PNG and JSON must be of one export",
            )

    def _find_pngs(self, entries: Sequence[Record]) -> Path:
        names = [str(entry.get("file_name", "")) for entry in entries[:20]]
        here = self._path.parent
        inside = [self._path.stem, "panoptic", f"panoptic_{split_of(self._path)}", "panoptic_masks", "masks"]
        folders = list(dict.fromkeys(root / name for root in (here, here.parent) for name in inside))
        folders += [folder / split_of(self._path) for folder in folders] + [here]
        for folder in folders:
            if any((folder / name).is_file() for name in names):
                return folder
        packed = self._path.with_suffix(".zip")
        help_ = f"; unzip {packed.name}" if packed.is_file() else ""
        raise DataError(
            self._path,
            f"its panoptic PNGs ({names[0]!r}, ...) are not found; looked in {some_of(folders, 5)}{help_}",
        )

    def _group(
        self, entries: Sequence[Record], images: Sequence[CocoImage], folder: Path
    ) -> tuple[_PanopticRecord, ...]:
        by_id = {image.id: image for image in images}
        labels = {file_id: label for label, file_id in enumerate(self._categories.file_ids)}
        seen: set[ImageId] = set()
        pictures = []
        for entry in entries:
            number = image_id(self._path, entry, "image_id", f"annotation {entry.get('file_name')!r}")
            if number not in by_id:
                raise DataError(self._path, f"an annotation is for image {number}, which is not in 'images'")
            if number in seen:
                raise DataError(
                    self._path, f"image {number} has two annotations; a panoptic file has one each"
                )
            seen.add(number)
            png = folder / str(entry.get("file_name", ""))
            if not png.is_file():
                raise DataError(png, f"no such file, but {self._path.name} names it for image {number}")
            pictures.append(self._picture(entry, by_id[number], png, labels))
        return tuple(pictures)

    def _picture(self, entry: Record, image: CocoImage, png: Path, labels: dict[int, int]) -> _PanopticRecord:
        path, where = self._path, f"a segment of image {image.id}"
        listed = entry.get("segments_info")
        if not isinstance(listed, list) or not all(isinstance(segment, dict) for segment in listed):
            raise DataError(path, f"the annotation of image {image.id} has no list 'segments_info'")
        ids = tuple(whole(path, segment, "id", where) for segment in listed)
        wrong = [number for number in ids if not 0 < number < _IDS or ids.count(number) > 1]
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
        return _PanopticRecord(
            image=image,
            png=png,
            ids=ids,
            labels=tuple(labels[category] for category in categories),
            is_crowd=tuple(bool(segment.get("iscrowd", 0)) for segment in listed),
        )

"""Pascal VOC: a map of classes and a map of objects beside each photo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray

from unimask.config.tasks import Task
from unimask.data.category_tables import BACKGROUND, BACKGROUND_COLOR, default_color
from unimask.data.formats.folders_scheme import CLASSES_FILE, VOID_COLOR
from unimask.data.formats.voc_folders import PHOTOS, find_set, read_lists
from unimask.data.formats.voc_xml import voc_files, xml_sources
from unimask.data.items import ItemDataset
from unimask.data.naming import Folders, find_image
from unimask.data.numbered import (
    LabelPair,
    check_sizes,
    numbers_of_colors,
    pack_color,
    palette_colors,
    size_of_labels,
)
from unimask.data.pillow import open_image
from unimask.data.rasterise import truth_segments
from unimask.data.read import numbered_lines, read_annotated_image, read_labels
from unimask.data.reading import PLAIN, Reading
from unimask.data.sources import Format, Source, Sources, split_of_word
from unimask.errors import DataError, some_of
from unimask.structures import Categories, Sample, Segments, Size

CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"
LISTS = "ImageSets/Segmentation"
LABEL_MAP = "labelmap.txt"
VOID = 255
VOC_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)


@dataclass(frozen=True, kw_only=True)
class VocScheme:
    """The names of the classes 1, 2, ..., and what colours mean where maps have colours."""

    names: tuple[str, ...]
    numbers_of_colors: Mapping[int, int]  # R + 256 G + 65536 B -> class


def read_voc_scheme(folder: Path) -> VocScheme:
    """Read the 20 classes of VOC, or those of `labelmap.txt` (CVAT: `name:r,g,b:parts:actions`, a line each).

    An entry without a colour has the one that VOC gives to its number, counted from 0.

    Raises:
        DataError: a line of the file is no such entry, or no class but the background is left.
    """
    path = folder / LABEL_MAP
    if not path.is_file():
        own = {pack_color(voc_color(number)): number for number in range(len(VOC_NAMES) + 1)}
        return VocScheme(names=VOC_NAMES, numbers_of_colors={**own, pack_color(VOID_COLOR): VOID})
    names, colors = [], {pack_color(VOID_COLOR): VOID}
    entries = 0
    for number, line in numbered_lines(path):
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        parts = rest.partition(":")[0].split(",")
        if ":" in line and parts == [""]:
            parts = [str(channel) for channel in voc_color(entries)]
        if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
            raise DataError(path, f"line {number}: {line!r}; expected name:red,green,blue::")
        color = pack_color((int(parts[0]), int(parts[1]), int(parts[2])))
        entries += 1
        if name.lower() == "background":
            colors[color] = 0
        else:
            names.append(name)
            colors[color] = len(names)
    if not names or len(set(names)) < len(names):
        raise DataError(path, f"the names are {some_of(names)}; expected at least one, all different")
    return VocScheme(names=tuple(names), numbers_of_colors=colors)


def voc_color(number: int) -> tuple[int, int, int]:
    """Return the colour of a class in the palette of VOC: the bits of its number, by three, from high to low.

    Source: the development kit of Pascal VOC, `VOCcolormap.m`.
    """
    red, green, blue = (
        sum((number >> (3 * place + channel) & 1) << (7 - place) for place in range(8))
        for channel in range(3)
    )
    return red, green, blue


def open_voc(folder: Path, scheme: VocScheme, stems: Sequence[str]) -> ItemDataset:
    """Open a sample for each stem: objects with the class that most of their pixels have.

    Background is stuff, the border of objects is void.
    """
    count = len(scheme.names)
    categories = Categories(
        names=(*scheme.names, BACKGROUND),
        is_thing=(*(True,) * count, False),
        file_ids=(*range(1, count + 1), 0),
        colors=(*(default_color(index) for index in range(count)), BACKGROUND_COLOR),
    )
    files, places = Folders(), [folder / PHOTOS, folder / "images", folder.parent / PHOTOS]
    items = tuple(
        _VocItem(
            folder=folder,
            scheme=scheme,
            image_id=stem,
            photo=find_image(folder / OBJECTS / f"{stem}.png", [stem], places, files),
        )
        for stem in stems
    )
    return ItemDataset(categories=categories, items=items)


@dataclass(frozen=True, kw_only=True)
class _VocItem:
    folder: Path
    scheme: VocScheme
    image_id: str
    photo: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return self.photo, *(self.folder / name / f"{self.image_id}.png" for name in (CLASSES, OBJECTS))

    def stated_size(self) -> tuple[Size, ...]:
        return size_of_labels(LabelPair(image=self.photo, labels=self.files[1]))

    def read(self, reading: Reading = PLAIN) -> Sample:
        stem = self.image_id
        photo, class_path, object_path = self.files
        for labels in (class_path, object_path):
            check_sizes(LabelPair(image=photo, labels=labels))
        classes = _read_classes(class_path, self.scheme.numbers_of_colors)
        objects = _read_objects(object_path)
        image = read_annotated_image(photo, (classes.shape[0], classes.shape[1]), reading)
        sizes = {classes.shape, objects.shape, tuple(image.shape[1:])}
        if len(sizes) > 1:
            raise DataError(
                object_path,
                f"is of another size than its classes or its photo {photo.name}: {sorted(sizes)}",
            )
        return Sample(image=image, truth=self._segments(classes, objects, object_path), image_id=stem)

    def _segments(self, classes: ndarray, objects: ndarray, path: Path) -> Segments:
        ids = [number for number in np.unique(objects).tolist() if number not in (0, VOID)]
        labels = [self._label(classes[objects == number], number, path) for number in ids]
        table = np.zeros(int(objects.max(initial=0)) + 1, dtype=np.int16)
        table[ids] = np.arange(1, len(ids) + 1)
        layer = table[objects]
        background = (classes == 0) & (layer == 0)
        if background.any():
            labels.append(len(self.scheme.names))
            layer[background] = len(labels)
        return truth_segments(torch.from_numpy(layer[None]), labels, [False] * len(labels))

    def _label(self, numbers: Int64[ndarray, " pixels"], number: int, path: Path) -> int:
        counts = np.bincount(numbers[(numbers != 0) & (numbers != VOID)], minlength=1)
        best = int(counts.argmax())
        if best == 0:
            raise DataError(path, f"object {number} has no class in {CLASSES}")
        if best > len(self.scheme.names):
            raise DataError(
                path, f"object {number} is of class {best}; there are 1 to {len(self.scheme.names)}"
            )
        return best - 1


def _read_classes(path: Path, numbers: Mapping[int, int]) -> Int64[ndarray, "height width"]:
    """Read the numbers that the colours stand for; where a palette has others, its own numbers."""
    image = open_image(path, rotate=False)
    shown = palette_colors(image).values()
    known = bool(shown) and all(pack_color(color) in numbers for color in shown)
    if image.mode not in ("RGB", "RGBA") and not known:
        return read_labels(path).astype(np.int64)
    return numbers_of_colors(
        path, image, numbers, LABEL_MAP if (path.parents[1] / LABEL_MAP).exists() else "Pascal VOC"
    )


def _read_objects(path: Path) -> Int64[ndarray, "height width"]:
    """Read the numbers of a palette image; colours are counted."""
    image = open_image(path, rotate=False)
    if image.mode not in ("RGB", "RGBA"):
        return read_labels(path).astype(np.int64)
    free = (number for number in range(1, 2**24) if number != VOID)
    pixels = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    colors = {pack_color((red, green, blue)) for red, green, blue in pixels.tolist()}
    special = {0: 0, pack_color(VOID_COLOR): VOID}
    numbers = {color: special[color] if color in special else next(free) for color in sorted(colors)}
    return numbers_of_colors(path, image, numbers, path.name)


def _find(path: Path, task: Task) -> Sources:
    folder = find_set(path, _has_maps) if not (path / CLASSES_FILE).exists() else None
    if folder is None:
        return {}
    if task == "detection" and voc_files(folder):  # many more of VOC's photos have boxes than masks
        return xml_sources(path)
    scheme = read_voc_scheme(folder)
    stems = tuple(sorted(path.stem for path in (folder / OBJECTS).glob("[!.]*.png")))
    lists = sorted((folder / LISTS).glob("*.txt"))
    splits = read_lists(lists, frozenset(stems), f"{OBJECTS}/{{}}.png") or {"": stems}
    return {
        split_of_word(word) or word: Source(path=folder, open=partial(open_voc, folder, scheme, stems))
        for word, stems in splits.items()
    }


def _has_maps(place: Path) -> bool:
    return (place / CLASSES).is_dir() and any((place / OBJECTS).glob("[!.]*.png"))


VOC = Format(
    layouts="  SegmentationClass/, SegmentationObject/, JPEGImages/, ImageSets/Segmentation/ (Pascal VOC)",
    find=_find,
)

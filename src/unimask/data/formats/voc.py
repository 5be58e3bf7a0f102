"""Pascal VOC: a picture of classes and a picture of objects beside each photo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray

from unimask.data.drawn import find_picture
from unimask.data.formats.coco_file import default_color
from unimask.data.rasterise import truth_segments
from unimask.data.read import open_picture, read_image, read_labels
from unimask.errors import DataError, some_of
from unimask.structures import Categories, Sample

CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"
PHOTOS, LISTS = "JPEGImages", "ImageSets/Segmentation"
LABEL_MAP = "labelmap.txt"
VOID = 255
VOID_COLOR = (224, 224, 192)
VOC_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)


@dataclass(frozen=True, kw_only=True)
class VocScheme:
    """The names of the classes 1, 2, ..., and what colours mean where pictures have colours."""

    names: tuple[str, ...]
    numbers_of_colors: Mapping[int, int]  # R + 256 G + 65536 B -> class


def find_voc(root: Path) -> Path | None:
    """The folder with SegmentationClass and SegmentationObject: this one, `VOC2012` in it, or further down.

    Raises:
        DataError: there are several.
    """
    places = [root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]
    found = [place for place in places if (place / CLASSES).is_dir() and any((place / OBJECTS).glob("*.png"))]
    if len(found) > 1:
        raise DataError(root, f"holds several sets: {some_of(p.name for p in found)}; name one of them")
    return found[0] if found else None


def voc_splits(folder: Path) -> dict[str, tuple[str, ...]]:
    """The stems of each list in ImageSets/Segmentation but `trainval`; without lists all pictures, under "".

    Raises:
        DataError: a list names no picture, or one that has no objects picture; list and line are named.
    """
    lists = sorted(path for path in (folder / LISTS).glob("*.txt") if path.stem != "trainval")
    if not lists:
        return {"": tuple(sorted(path.stem for path in (folder / OBJECTS).glob("*.png")))}
    splits = {}
    for path in lists:
        stems = []
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            stem = line.strip().rsplit("/", 1)[-1]
            if stem and not (folder / OBJECTS / f"{stem}.png").is_file():
                raise DataError(path, f"line {number}: {stem!r} has no {OBJECTS}/{stem}.png")
            stems += [stem] * bool(stem)
        if not stems:
            raise DataError(path, "is empty: it lists no pictures")
        splits[path.stem.lower() if path.stem != "default" else ""] = tuple(stems)
    return splits


def read_voc_scheme(folder: Path) -> VocScheme:
    """The 20 classes of VOC, or those of `labelmap.txt` (CVAT: `name:r,g,b:parts:actions`, a line each).

    An entry without a colour has the one that VOC gives to its number, counted from 0.

    Raises:
        DataError: a line of the file is no such entry, or no class but the background is left.
    """
    path = folder / LABEL_MAP
    if not path.is_file():
        return VocScheme(names=VOC_NAMES, numbers_of_colors={})
    names, colors = [], {_pack(VOID_COLOR): VOID}
    entries = 0
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        parts = rest.partition(":")[0].split(",")
        if ":" in line and parts == [""]:
            parts = [str(channel) for channel in voc_color(entries)]
        if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
            raise DataError(path, f"line {number}: {line.strip()!r}; expected name:red,green,blue::")
        color = _pack((int(parts[0]), int(parts[1]), int(parts[2])))
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
    """The colour of a class in the palette of VOC: the bits of its number, by three, from high to low.

    Source: the development kit of Pascal VOC, `VOCcolormap.m`.
    """
    red, green, blue = (
        sum((number >> (3 * place + channel) & 1) << (7 - place) for place in range(8))
        for channel in range(3)
    )
    return red, green, blue


def _pack(color: tuple[int, int, int]) -> int:
    return color[0] + 256 * color[1] + 65536 * color[2]


class VocObjects:
    """Objects of VOC with the class that most of their pixels have; background is stuff, the border is void.

    Raises:
        DataError: pictures differ in size, or an object has no class, or a class has no name.
    """

    def __init__(self, folder: Path, scheme: VocScheme, stems: Sequence[str]) -> None:
        self._folder, self._scheme, self._stems = folder, scheme, tuple(stems)
        count = len(scheme.names)
        self._categories = Categories(
            names=(*scheme.names, "background"),
            is_thing=(*(True,) * count, False),
            file_ids=(*range(1, count + 1), 0),
            colors=(*(default_color(index) for index in range(count)), (40, 40, 40)),
        )

    @property
    def categories(self) -> Categories:
        """The classes, and background as stuff."""
        return self._categories

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The id of every sample, without reading it."""
        return self._stems

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> Sample:
        stem = self._stems[index]
        class_path, object_path = (self._folder / name / f"{stem}.png" for name in (CLASSES, OBJECTS))
        classes = _read(class_path, self._scheme.numbers_of_colors)
        objects = _read(object_path, {})
        photos = [self._folder / PHOTOS, self._folder / "images", self._folder.parent / PHOTOS]
        picture = find_picture(object_path, stem, photos)
        image = read_image(picture)
        sizes = {classes.shape, objects.shape, tuple(image.shape[1:])}
        if len(sizes) > 1:
            raise DataError(
                object_path,
                f"is of another size than its classes or its photo {picture.name}: {sorted(sizes)}",
            )
        ids = [number for number in np.unique(objects).tolist() if number not in (0, VOID)]
        labels = [self._label(classes[objects == number], number, object_path) for number in ids]
        table = np.zeros(int(objects.max(initial=0)) + 1, dtype=np.int16)
        table[ids] = np.arange(1, len(ids) + 1)
        layer = table[objects]
        background = (classes == 0) & (layer == 0)
        if background.any():
            labels.append(len(self._scheme.names))
            layer[background] = len(labels)
        segments = truth_segments(torch.from_numpy(layer[None]), labels, [False] * len(labels))
        return Sample(image=image, truth=segments, image_id=stem)

    def _label(self, numbers: Int64[ndarray, " pixels"], number: int, path: Path) -> int:
        counts = np.bincount(numbers[(numbers != 0) & (numbers != VOID)], minlength=1)
        best = int(counts.argmax())
        if best == 0:
            raise DataError(path, f"object {number} has no class in {CLASSES}")
        if best > len(self._scheme.names):
            raise DataError(
                path, f"object {number} is of class {best}; there are 1 to {len(self._scheme.names)}"
            )
        return best - 1


def _read(path: Path, numbers_of_colors: Mapping[int, int]) -> Int64[ndarray, "height width"]:
    """The numbers in a palette picture; colours through the table, or without one counted as they come."""
    image = open_picture(path, rotate=False)
    if image.mode not in ("RGB", "RGBA"):
        return read_labels(path).astype(np.int64)
    channels = np.asarray(image.convert("RGB")).astype(np.int64)
    packed = channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
    colors, places = np.unique(packed, return_inverse=True)
    if numbers_of_colors:
        foreign = [color for color in colors.tolist() if color not in numbers_of_colors]
        if foreign:
            shown = some_of((c & 255, c >> 8 & 255, c >> 16) for c in foreign)
            raise DataError(path, f"has colours that {LABEL_MAP} does not name: {shown}")
        table = np.array([numbers_of_colors[color] for color in colors.tolist()])
    else:
        free = (number for number in range(1, 2**24) if number != VOID)
        special = {0: 0, _pack(VOID_COLOR): VOID}
        table = np.array([special[c] if c in special else next(free) for c in colors.tolist()])
    return table[places].reshape(packed.shape)

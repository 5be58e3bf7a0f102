"""CVAT for images 1.1: one XML of polygons, masks, boxes and ellipses."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.parsers import expat

import numpy as np

from unimask.config.tasks import Task
from unimask.data.drawn import (
    Drawn,
    DrawnImage,
    Outline,
    Patch,
    Region,
    United,
    box_ring,
    drawn_dataset,
    ellipse_ring,
    ring,
    said_without_area,
)
from unimask.data.items import ItemDataset
from unimask.data.naming import Folders, find_image
from unimask.data.sources import Format, Source, Sources, split_of_word
from unimask.errors import DataError, first_line, some_of
from unimask.files import first_bytes, read_bytes
from unimask.structures import Size

CVAT_FILE = "annotations.xml"
_LARGEST = 1e9  # of a coordinate or a size
SHAPES = ("polygon", "mask", "box", "ellipse")
WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")


@dataclass(frozen=True, kw_only=True)
class CvatShape:
    """An element with an area."""

    kind: str
    line: int
    attributes: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class CvatImage:
    """An `image` element."""

    line: int
    attributes: Mapping[str, str]
    shapes: list[CvatShape] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # the kinds of its elements without an area


@dataclass(frozen=True, kw_only=True)
class CvatFile:
    """What the XML holds: the labels in its order (without a list of them: those that occur, sorted)."""

    path: Path
    names: tuple[str, ...]
    images: tuple[CvatImage, ...]


def is_cvat(path: Path) -> bool:
    """Return whether the file begins as an XML of CVAT."""
    return path.suffix.lower() == ".xml" and b"<annotations" in first_bytes(path, 4096)


def read_cvat(path: Path) -> CvatFile:
    """Read the labels and images of the file.

    Raises:
        DataError: it is no XML, or has no images, or a shape has no label; the line is named.
    """
    images: list[CvatImage] = []
    names: list[str] = []
    open_tags: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        open_tags.append(tag)
        line = parser.CurrentLineNumber
        if tag == "image":
            images.append(CvatImage(line=line, attributes=attributes))
        elif tag in SHAPES and images:
            if not attributes.get("label"):
                raise DataError(path, f"line {line}: a {tag} has no label")
            images[-1].shapes.append(CvatShape(kind=tag, line=line, attributes=attributes))
        elif tag in WITHOUT_AREA and images and open_tags[-2] == "image":
            images[-1].others.append(tag)

    def text(content: str) -> None:
        if open_tags[-2:] == ["label", "name"] and content.strip():
            names.append(content.strip())

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: open_tags.pop()
    parser.CharacterDataHandler = text
    try:
        parser.Parse(read_bytes(path), True)
    except expat.ExpatError as error:
        raise DataError(
            path, f"line {error.lineno}: is no valid XML ({expat.ErrorString(error.code)}); export it again"
        ) from None
    except (LookupError, ValueError) as error:  # an unknown encoding
        raise DataError(path, f"is no valid XML ({first_line(error)}); save it as UTF-8") from None
    if not images:
        raise DataError(path, "has no images; expected an export of kind 'CVAT for images 1.1'")
    used = {shape.attributes["label"] for image in images for shape in image.shapes}
    unknown = sorted(used - set(names))
    if names and unknown:
        raise DataError(path, f"has shapes with labels that it does not list: {some_of(unknown)}")
    return CvatFile(path=path, names=tuple(dict.fromkeys(names)) or tuple(sorted(used)), images=tuple(images))


def cvat_subsets(file: CvatFile) -> dict[str, tuple[CvatImage, ...]]:
    """Return the images by their `subset`, in small letters; "" where there are none."""
    found: dict[str, list[CvatImage]] = {}
    for image in file.images:
        subset = image.attributes.get("subset", "").lower()
        found.setdefault("" if subset == "default" else subset, []).append(image)
    return {subset: tuple(images) for subset, images in found.items()}


def open_cvat(file: CvatFile, images: Sequence[CvatImage]) -> ItemDataset:
    """Open a sample per image. Shapes of one label and group (`group_id`, not 0) are one object.

    Raises:
        DataError: nothing is drawn, or a shape is broken (the line is named), or an image is missing.
    """
    if not file.names:
        raise DataError(file.path, "has no labels and no shapes with an area")
    labels = {name: label for label, name in enumerate(file.names)}
    files = Folders()
    others = Counter(kind for image in images for kind in image.others)
    drawn = [_image(file.path, image, labels, files) for image in images]
    return drawn_dataset(
        file.names, drawn, left_out=said_without_area(others, f"elements of {file.path.name}")
    )


def _image(path: Path, image: CvatImage, labels: Mapping[str, int], files: Folders) -> DrawnImage:
    name, subset = image.attributes.get("name", ""), image.attributes.get("subset", "")
    folders = [path.parent / "images" / subset, path.parent / "images", path.parent]
    width, height = (_number(path, image.line, image.attributes, key) for key in ("width", "height"))
    groups: dict[tuple[str, str], list[CvatShape]] = {}
    for index, shape in enumerate(image.shapes):
        group = shape.attributes.get("group_id", "0")
        own = f"shape {index}" if group in ("", "0") else group
        groups.setdefault((shape.attributes["label"], own), []).append(shape)
    objects = []
    for (label, _), members in groups.items():
        regions = [_region(path, member) for member in members]
        region = United(regions=tuple(regions)) if len(regions) > 1 else regions[0]
        objects.append(Drawn(label=labels[label], region=region, where=f"line {members[0].line}"))
    return DrawnImage(
        image=find_image(path, [name], folders, files),
        source=path,
        size=((round(height), round(width)),),
        objects=tuple(objects),
    )


def _number(path: Path, line: int, attributes: Mapping[str, str], key: str, default: str = "") -> float:
    try:
        number = float(attributes.get(key, default))
    except ValueError:
        number = float("nan")
    if not abs(number) < _LARGEST:
        raise DataError(path, f"line {line}: {key} is {attributes.get(key)!r}; expected a number")
    return number


def _region(path: Path, shape: CvatShape) -> Region:
    line, given = shape.line, shape.attributes

    def number(key: str, default: str = "") -> float:
        return _number(path, line, given, key, default)

    if shape.kind == "polygon":
        points = given.get("points", "").replace(";", ",").split(",")
        return Outline(rings=(ring(path, f"line {line}", points),))
    if shape.kind == "box":
        left, top, right, bottom = (number(key) for key in ("xtl", "ytl", "xbr", "ybr"))
        turned = _turn(box_ring(left, top, right, bottom), number("rotation", "0"))
        return Outline(rings=(turned,))
    if shape.kind == "ellipse":
        x, y, across, down = (number(key) for key in ("cx", "cy", "rx", "ry"))
        return Outline(rings=(ellipse_ring(x, y, across, down, number("rotation", "0")),))
    left, top, width, height = (round(number(key)) for key in ("left", "top", "width", "height"))
    texts = [run.strip() for run in given.get("rle", "").split(",")]
    runs = tuple(int(run) if run.isdecimal() and len(run) < 12 else -1 for run in texts)
    if min(runs) < 0 or width < 1 or height < 1 or sum(runs) != width * height:
        raise DataError(path, f"line {line}: the runs of a mask do not fill its {width} x {height} pixels")
    return _Runs(runs=runs, left=left, top=top, size=(height, width))


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """A mask of its own size as runs row by row, beginning with a run of zeros."""

    runs: tuple[int, ...]
    left: int
    top: int
    size: Size

    def pixels(self, size: Size) -> np.ndarray:
        if self.size[0] > size[0] + 1 or self.size[1] > size[1] + 1:
            raise ValueError(f"its mask of {self.size[1]} x {self.size[0]} pixels is larger than the image")
        values = np.repeat(np.arange(len(self.runs)) % 2 == 1, self.runs)
        return Patch(mask=values.reshape(self.size), left=self.left, top=self.top).pixels(size)


def _turn(corners: np.ndarray, degrees: float) -> np.ndarray:
    """Return a polygon turned clockwise around its centre."""
    points = corners.reshape(-1, 2)
    center, angle = points.mean(axis=0), np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned: np.ndarray = ((points - center) @ matrix + center).ravel()
    return turned


def _find(path: Path, task: Task) -> Sources:
    """Find the file itself, `annotations.xml` in a folder, or a file per split, as datumaro writes them."""
    file = path if path.is_file() else path / CVAT_FILE
    if is_cvat(file):
        return _subsets(file)
    parts = {split_of_word(part.stem): part for part in sorted(path.glob("*.xml")) if is_cvat(part)}
    return _files(parts) if "" not in parts else {}


def _subsets(path: Path) -> Sources:
    file = read_cvat(path)
    return {
        split_of_word(subset) or subset: Source(path=path, open=partial(open_cvat, file, images))
        for subset, images in cvat_subsets(file).items()
    }


def _files(paths: Mapping[str, Path]) -> Sources:
    files = {split: read_cvat(path) for split, path in paths.items()}
    for other in files.values():
        first = next(iter(files.values()))
        if other.names != first.names:
            raise DataError(other.path, f"has other labels than {first.path.name}; export them together")
    return {
        split: Source(path=file.path, open=partial(open_cvat, file, file.images))
        for split, file in files.items()
    }


CVAT = Format(
    layouts="  annotations.xml (or train.xml, val.xml), images beside it or in images/ (CVAT)",
    find=_find,
)

"""Pascal VOC without pictures of objects: for each photo an XML of boxes, or of outlines."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from numpy import ndarray

from unimask.data.drawn import (
    Drawn,
    DrawnPicture,
    DrawnPictures,
    Outline,
    box_ring,
    find_picture,
    ring,
)
from unimask.errors import DataError, some_of
from unimask.structures import Size

ANNOTATIONS, LISTS, PHOTOS = "Annotations", "ImageSets/Main", "JPEGImages"
CORNERS = ("xmin", "ymin", "xmax", "ymax")
NO_SPLIT = ("trainval", "default")


def find_voc_boxes(root: Path) -> Path | None:
    """The folder with `Annotations/` of XML files: this one, `VOC2012` in it, or further down.

    A folder whose XML files lie beside the photos or directly in it is one too.

    Raises:
        DataError: there are several.
    """
    places = [root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]
    found = [place for place in places if voc_files(place)]
    if len(found) > 1:
        raise DataError(root, f"holds several sets: {some_of(p.name for p in found)}; name one of them")
    return found[0] if found else None


def voc_files(folder: Path) -> list[Path]:
    """The XML files of VOC of a folder, in `Annotations/` or directly in it."""
    for place in (folder / ANNOTATIONS, folder / ANNOTATIONS.lower(), folder):
        found = [path for path in sorted(place.glob("*.xml")) if _is_voc(path)]
        if found:
            return found
    return []


def _is_voc(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4096)
    return b"<annotation>" in start or b"<annotation " in start


def voc_box_splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The XML files of each list in ImageSets/Main but `trainval`; without lists all of them, under "".

    Lists of a single class (`cat_train.txt`) are left out.

    Raises:
        DataError: a list names a photo that has no XML; list and line are named.
    """
    files = voc_files(folder)
    by_stem = {path.stem: path for path in files}
    splits = {}
    for path in sorted((folder / LISTS).glob("*.txt")):
        if path.stem in NO_SPLIT or "_" in path.stem:
            continue
        chosen = []
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            stem = (line.split() or [""])[0].rsplit("/", 1)[-1]
            if stem and stem not in by_stem:
                raise DataError(path, f"line {number}: {stem!r} has no {ANNOTATIONS}/{stem}.xml")
            chosen += [by_stem[stem]] * bool(stem)
        if chosen:
            splits[path.stem.lower()] = tuple(chosen)
    return splits or {"": tuple(files)}


def voc_box_names(files: Sequence[Path]) -> tuple[str, ...]:
    """The names of all objects in the files, sorted.

    Raises:
        DataError: a file is no XML, or an object has no name, or there are no objects.
    """
    names = {_name(path, where, one) for path in files for where, one in _objects(path, _read(path))}
    if not names:
        raise DataError(files[0].parent, f"{len(files)} XML files of Pascal VOC hold no objects")
    return tuple(sorted(names))


def open_voc_boxes(names: Sequence[str], files: Sequence[Path]) -> DrawnPictures:
    """One sample per file. An object's outline is taken where there is one, else its box.

    Corners of boxes that are whole numbers count pixels from 1, and the pixel of the last corner belongs to
    the box, as the development kit of VOC says. Written with a point (`29.0`: CVAT, datumaro) they are
    places in the picture, counted from 0. Difficult objects are objects like any other.

    Raises:
        DataError: a file or an object cannot be used, or a photo is missing.
    """
    labels = {name: label for label, name in enumerate(names)}
    return DrawnPictures(names, [_picture(path, labels) for path in files])


def _read(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError, LookupError) as error:
        raise DataError(path, f"is no valid XML ({error}); write it again") from None


def _objects(path: Path, root: ElementTree.Element) -> list[tuple[str, ElementTree.Element]]:
    """The objects, and how messages name them."""
    return [(f"object {number}", one) for number, one in enumerate(root.findall("object"), 1)]


def _name(path: Path, where: str, one: ElementTree.Element) -> str:
    name = (one.findtext("name") or "").strip()
    if not name:
        raise DataError(path, f"{where} has no name")
    return name


def _picture(path: Path, labels: dict[str, int]) -> DrawnPicture:
    root = _read(path)
    objects = []
    for where, one in _objects(path, root):
        name = _name(path, where, one)
        where = f"{where} ({name!r})"
        objects.append(Drawn(label=labels[name], region=_region(path, where, one), where=where))
    named = (root.findtext("filename") or "").strip() or path.stem
    folder = path.parent
    folders = [folder.parent / PHOTOS, folder.parent / "images", folder, folder.parent]
    try:
        picture = find_picture(path, named, folders)
    except DataError:
        picture = find_picture(path, path.stem, folders)
    return DrawnPicture(picture=picture, source=path, size=_size(path, root), objects=tuple(objects))


def _size(path: Path, root: ElementTree.Element) -> tuple[Size, ...]:
    """What the file says; many tools write zeros or nothing where they do not know it."""
    given = [(root.findtext(f"size/{side}") or "0").strip() for side in ("height", "width")]
    if not all(side.isdecimal() for side in given):
        raise DataError(path, f"its size is {given[1]} x {given[0]}; expected whole numbers of pixels")
    height, width = map(int, given)
    return ((height, width),) if height and width else ()


def _region(path: Path, where: str, one: ElementTree.Element) -> Outline:
    outlines = [_polygon(path, where, polygon) for polygon in one.findall("polygon")]
    if outlines:
        return Outline(rings=tuple(outlines))
    texts = [one.findtext(f"bndbox/{corner}") or "" for corner in CORNERS]
    try:
        left, top, right, bottom = (float(text) for text in texts)
    except ValueError:
        raise DataError(path, f"{where}: its bndbox has no four numbers {', '.join(CORNERS)}") from None
    if not (right >= left and bottom >= top):
        raise DataError(
            path, f"{where}: its box goes from ({left:g}, {top:g}) to ({right:g}, {bottom:g}), backwards"
        )
    first = 0 if any("." in text for text in texts) else 1
    corners = box_ring(left - first, top - first, right, bottom)
    return Outline(rings=(ring(path, where, corners.tolist()),))


def _polygon(path: Path, where: str, polygon: ElementTree.Element) -> ndarray:
    """An outline as supervision and Roboflow write it: x1, y1, x2, y2, ..., counted from 1 as boxes."""
    numbers: list[object] = []
    for index in range(1, len(polygon) // 2 + 1):
        numbers += [polygon.findtext(f"x{index}"), polygon.findtext(f"y{index}")]
    return ring(path, where, numbers) - 1

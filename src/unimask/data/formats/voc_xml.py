"""Pascal VOC without maps of objects: for each photo an XML of boxes, or of outlines."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from numpy import ndarray

from unimask.config.tasks import Task
from unimask.data.drawn import (
    Drawn,
    DrawnImage,
    Outline,
    box_ring,
    drawn_dataset,
    ring,
)
from unimask.data.formats.voc_folders import PHOTOS, find_set, read_lists
from unimask.data.items import ItemDataset
from unimask.data.naming import Folders, find_own_image
from unimask.data.sources import SPLITS, Format, Source, Sources, split_of_word
from unimask.errors import DataError
from unimask.files import first_bytes, read_bytes
from unimask.structures import Size

ANNOTATIONS, LISTS = "Annotations", "ImageSets/Main"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_files(folder: Path) -> list[Path]:
    """Return the XML files of VOC of a folder, in `Annotations/` or directly in it."""
    for place in (folder / ANNOTATIONS, folder / ANNOTATIONS.lower(), folder):
        found = [path for path in sorted(place.glob("*.xml")) if _is_voc(path)]
        if found:
            return found
    return []


def _is_voc(path: Path) -> bool:
    start = first_bytes(path, 4096)
    return b"<annotation>" in start or b"<annotation " in start


def voc_names(files: Sequence[Path]) -> tuple[str, ...]:
    """Return the names of all objects in the files, sorted.

    Raises:
        DataError: a file is no XML, or an object has no name, or there are no objects.
    """
    names = {_name(path, where, one) for path in files for where, one in _objects(path, _read(path))}
    if not names:
        raise DataError(files[0].parent, f"{len(files)} XML files of Pascal VOC hold no objects")
    return tuple(sorted(names))


def open_voc_xml(names: Sequence[str], files: Sequence[Path]) -> ItemDataset:
    """Open a sample per file. An object's outline is taken where there is one, else its box.

    Corners of boxes that are whole numbers count pixels from 1, and the pixel of the last corner belongs to
    the box, as the development kit of VOC says. Written with a point (`29.0`: CVAT, datumaro) they are
    coordinates in the image, counted from 0. Difficult objects are crowd, as in COCO's JSON.

    Raises:
        DataError: a file or an object cannot be used, or a photo is missing.
    """
    labels = {name: label for label, name in enumerate(names)}
    folders = Folders()
    return drawn_dataset(names, [_image(path, labels, folders) for path in files])


def _read(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(read_bytes(path))
    except (ElementTree.ParseError, UnicodeDecodeError, LookupError, ValueError) as error:
        raise DataError(path, f"is no valid XML ({error}); write it again") from None


def _objects(path: Path, root: ElementTree.Element) -> list[tuple[str, ElementTree.Element]]:
    """Return the objects, and how messages name them."""
    return [
        (f"object {number}", one)
        for number, one in enumerate(root.findall("object"), 1)
        if (one.findtext("deleted") or "0").strip() != "1"  # the XML of LabelMe keeps deleted objects
    ]


def _name(path: Path, where: str, one: ElementTree.Element) -> str:
    name = (one.findtext("name") or "").strip()
    if not name:
        raise DataError(path, f"{where} has no name")
    return name


def _image(path: Path, labels: dict[str, int], files: Folders) -> DrawnImage:
    root = _read(path)
    objects = []
    for where, one in _objects(path, root):
        name = _name(path, where, one)
        where = f"{where} ({name!r})"
        region, is_crowd = _region(path, where, one), _is_difficult(path, where, one)
        objects.append(Drawn(label=labels[name], region=region, where=where, is_crowd=is_crowd))
    named = (root.findtext("filename") or "").strip()
    folder = path.parent
    folders = [folder.parent / PHOTOS, folder.parent / "images", folder, folder.parent]
    image = find_own_image(path, named, folders, files)
    return DrawnImage(image=image, source=path, size=_size(path, root), objects=tuple(objects))


def _is_difficult(path: Path, where: str, one: ElementTree.Element) -> bool:
    text = (one.findtext("difficult") or "0").strip() or "0"
    if text not in ("0", "1"):
        raise DataError(path, f"{where}: difficult is {text!r}; expected 0 or 1")
    return text == "1"


def _size(path: Path, root: ElementTree.Element) -> tuple[Size, ...]:
    """Return what the file says; many tools write zeros or nothing where they do not know it."""
    own, of_labelme = ("size/height", "size/width"), ("imagesize/nrows", "imagesize/ncols")
    places = of_labelme if root.find("imagesize") is not None else own
    given = [(root.findtext(place) or "0").strip() for place in places]
    if not all(side.isdecimal() and len(side) < 10 for side in given):
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
    """Return an outline, which supervision and Roboflow write as x1, y1, x2, y2, ..., counted from 1."""
    points = polygon.findall("pt")
    if points:  # the XML of LabelMe, counted from 0
        return ring(path, where, [point.findtext(axis) for point in points for axis in "xy"])
    numbers: list[object] = []
    for index in range(1, len(polygon) // 2 + 1):
        numbers += [polygon.findtext(f"x{index}"), polygon.findtext(f"y{index}")]
    return ring(path, where, numbers) - 1


def xml_sources(root: Path) -> Sources:
    """Return the sets of photos with an XML each, split by lists or by folders; all share their names.

    Raises:
        DataError: there are several sets, or a list names a photo that has no XML, or a file is broken.
    """
    found = find_set(root, lambda place: bool(voc_files(place)))
    files = _splits(found) if found is not None else {}
    for split, words in SPLITS.items() if found is None else ():
        listed = [tuple(voc_files(root / word)) for word in words]
        files.update({split: next(filter(None, listed))} if any(listed) else {})
    if not files:
        return {}
    names = voc_names([path for paths in files.values() for path in paths])
    return {
        split_of_word(word) or word: Source(path=paths[0].parent, open=partial(open_voc_xml, names, paths))
        for word, paths in files.items()
    }


def _splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return the XML files of each list but `cat_train.txt` and its like; without lists all, under ""."""
    by_stem = {path.stem: path for path in voc_files(folder)}
    lists = [path for path in sorted((folder / LISTS).glob("*.txt")) if "_" not in path.stem]
    splits = read_lists(lists, by_stem, f"{ANNOTATIONS}/{{}}.xml") or {"": tuple(by_stem)}
    return {split: tuple(by_stem[stem] for stem in stems) for split, stems in splits.items()}


def _find(path: Path, task: Task) -> Sources:
    return xml_sources(path)


VOC_XML = Format(
    layouts="""\
  Annotations/ of .xml files, JPEGImages/, ImageSets/Main/; .xml files beside images (Pascal VOC, boxes)""",
    find=_find,
)

"""What the JSON formats of COCO share: images, categories, and their checks."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from unimask.data.category_tables import color_or_default
from unimask.data.naming import Folders, spellings
from unimask.data.pillow import MOST_PIXELS
from unimask.data.read import read_annotated_image
from unimask.data.reading import Reading
from unimask.errors import DataError, some_of
from unimask.files import read_json
from unimask.structures import Categories, Size

Record = Mapping[str, object]
ImageId = int | str
"""COCO numbers its images; scripts that write its format for other data sets name them."""


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """One entry of `images`."""

    id: ImageId
    path: Path
    size: Size


COCO = "a COCO file (images, annotations, ...)"


def load_json(path: Path, expected: str = COCO) -> Record:
    """Read the object in a JSON file; `expected` says what the file should hold.

    Raises:
        DataError: the file is missing, no JSON, or holds no object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(path, f"holds a {type(content).__name__}; expected {expected}")
    return content


def records(path: Path, content: Record, key: str, expected: str = COCO) -> list[Record]:
    """Return the list of objects under a key of a JSON file; `expected` says what the file should hold.

    Raises:
        DataError: the key is missing, or is no list of objects, or the list is empty.
    """
    found = content.get(key)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DataError(path, f"has no list of objects {key!r}; expected {expected}")
    if not found:
        raise DataError(path, f"{key!r} is empty: there is nothing to learn or to measure; export it again")
    return found


def whole(path: Path, record: Record, key: str, what: str) -> int:
    """Return the integer under a key of a record, which may be text.

    Raises:
        DataError: it is missing or no integer.
    """
    value = record.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isdecimal() and len(value) < 19:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(path, f"{what} has {key} {value!r}; expected an integer")
    return value


def flag(path: Path, record: Record, key: str, what: str) -> bool:
    """Return whether a key of a record is 1 and not 0 or missing; the number may be text.

    Raises:
        DataError: it is anything else.
    """
    value = record.get(key, 0)
    number = {"0": 0, "1": 1}.get(value) if isinstance(value, str) else value
    if not isinstance(number, int | float) or number not in (0, 1):
        raise DataError(path, f"{what} has {key} {value!r}; expected 0 or 1")
    return bool(number)


def image_id(path: Path, record: Record, key: str, what: str) -> ImageId:
    """Return the id of an image under a key of a record: an integer, or text.

    Raises:
        DataError: it is missing or neither.
    """
    value = record.get(key)
    return (
        value
        if isinstance(value, str) and value and not value.isdecimal()
        else whole(path, record, key, what)
    )


def unique(path: Path, ids: Iterable[ImageId], what: str) -> None:
    """Check that each id occurs once.

    Raises:
        DataError: one occurs twice.
    """
    seen: set[ImageId] = set()
    for number in ids:
        if number in seen:
            raise DataError(path, f"{what} {number} occurs twice; every id must be unique")
        seen.add(number)


def read_categories(path: Path, content: Record, *, used: frozenset[int]) -> Categories:
    """Read the categories, in the order of the file; without `isthing` they are things.

    Roboflow writes the name of the whole set as category 0, the parent of all others. Such an entry is left
    out when no annotation has it (`used`).

    Raises:
        DataError: a name or id is missing, or occurs twice.
    """
    entries = records(path, content, "categories")
    parents = {entry.get("supercategory") for entry in entries}
    kept = []
    for entry in entries:
        is_header = (
            entry.get("supercategory") == "none" and entry.get("id") == 0 and entry.get("name") in parents
        )
        if not (is_header and 0 not in used and len(entries) > 1):
            kept.append(entry)
    file_ids = tuple(whole(path, entry, "id", f"category {entry.get('name')!r}") for entry in kept)
    unique(path, file_ids, "category id")
    names = tuple(str(entry.get("name", "")).strip() for entry in kept)
    for name, count in Counter(names).items():
        if not name or count > 1:
            raise DataError(path, f"category name {name!r} is empty or occurs twice; names must be unique")
    return Categories(
        names=names,
        is_thing=tuple(
            "isthing" not in entry or flag(path, entry, "isthing", f"category {name!r}")
            for name, entry in zip(names, kept)
        ),
        file_ids=file_ids,
        colors=tuple(color_or_default(entry.get("color"), index) for index, entry in enumerate(kept)),
    )


def used_categories(entries: Sequence[Record]) -> frozenset[int]:
    """Return the category ids that occur in annotations."""
    return frozenset(c for entry in entries if isinstance(c := entry.get("category_id"), int)) | frozenset(
        int(c)
        for entry in entries
        if isinstance(c := entry.get("category_id"), str) and c.isdecimal() and len(c) < 20
    )


def annotations_of_images(
    path: Path, entries: Sequence[Record], images: Sequence[CocoImage], categories: Categories
) -> dict[ImageId, list[tuple[Record, int]]]:
    """Group annotations by image id, in the order of the file, each with its label.

    Raises:
        DataError: an id occurs twice, or an annotation has an unknown image or category.
    """
    unique(path, (whole(path, entry, "id", "an annotation") for entry in entries), "annotation id")
    labels = {file_id: label for label, file_id in enumerate(categories.file_ids)}
    groups: dict[ImageId, list[tuple[Record, int]]] = {image.id: [] for image in images}
    for entry in entries:
        what = f"annotation {entry['id']}"
        image, category = image_id(path, entry, "image_id", what), whole(path, entry, "category_id", what)
        if image not in groups:
            raise DataError(
                path,
                f"{what} is for image {image}, which is not in 'images'; remove one or add the other",
            )
        if category not in labels:
            raise DataError(
                path,
                f"{what} has category {category}, which is not in 'categories' ({some_of(labels)}); "
                "correct it or add the category",
            )
        groups[image].append((entry, labels[category]))
    return groups


def read_images(path: Path, content: Record, folders: Sequence[Path]) -> tuple[CocoImage, ...]:
    """Read the images of a COCO file and find them in the given folders.

    Raises:
        DataError: an entry is incomplete or occurs twice, or images are missing.
    """
    entries = records(path, content, "images")
    ids = [image_id(path, entry, "id", f"image {entry.get('file_name')!r}") for entry in entries]
    unique(path, ids, "image id")
    names = [str(entry.get("file_name", "")) for entry in entries]
    files = _find_images(path, names, folders)
    sizes = [
        (whole(path, entry, "height", f"image {id_}"), whole(path, entry, "width", f"image {id_}"))
        for entry, id_ in zip(entries, ids)
    ]
    for id_, (height, width) in zip(ids, sizes):
        if height < 1 or width < 1:
            raise DataError(path, f"image {id_} is {width} x {height}; expected at least 1 x 1")
        if height * width > MOST_PIXELS:
            raise DataError(path, f"image {id_} is {width} x {height}, more than {MOST_PIXELS:,} pixels")
    return tuple(CocoImage(id=i, path=f, size=s) for i, f, s in zip(ids, files, sizes))


def _find_images(path: Path, names: Sequence[str], folders: Sequence[Path]) -> list[Path]:
    """Return each image's file, all of them in the folder that has the most of the first few.

    They have the names as they are written; if none exists, the names without their first folders.
    """
    looked, files = list(dict.fromkeys(folders)), Folders()
    depth = max(len(spellings(name)) for name in names[:20])
    for dropped in range(depth):
        spelt = [spellings(name)[: dropped + 1] for name in names]
        hits = [sum(_first(files, folder, one) is not None for one in spelt[:20]) for folder in looked]
        if max(hits):
            break
    else:
        raise DataError(
            path, f"its images are not found ({names[0]!r}, ...); looked in {some_of(looked, 20)}"
        )
    folder = looked[hits.index(max(hits))]
    spelt = [spellings(name)[: max(2, dropped + 1)] for name in names]
    found = [_first(files, folder, one) for one in spelt]
    missing = [name for name, file in zip(names, found) if file is None]
    if missing:
        raise DataError(
            path,
            f"{len(missing)} of {len(names)} images are missing in {folder}, the first is {missing[0]!r}; "
            "copy them there or take them out of the JSON",
        )
    return [file for file in found if file is not None]


def _first(files: Folders, folder: Path, spelt: Sequence[str]) -> Path | None:
    return next((file for one in spelt if one and (file := files.file(folder, one)) is not None), None)


def image_folders(path: Path) -> list[Path]:
    """Return where the images of a COCO JSON may lie, by the conventions of COCO, Roboflow and common tools.

    With `instances_train2017.json` in `annotations/`: `.`, `images`, `train2017`, `images/train2017`,
    `train2017/images`, the same without the year, each relative to the JSON's folder and to its parent.
    """
    split = split_of(path)
    plain = split.rstrip("0123456789")
    inside = [
        "",
        "images",
        *(f"{a}{b}" for s in (split, plain) if s for a, b in _AROUND for a, b in [(a + s, b)]),
    ]
    inside += ["JPEGImages", "img", "imgs", "data"]
    return [root / name for root in (path.parent, path.parent.parent) for name in inside]


_KINDS = ("instances", "panoptic", "detection", "annotations")
_AROUND = (("", ""), ("images/", ""), ("", "/images"))


def split_of(path: Path) -> str:
    """Return the part of a COCO file's name that is the split: `train2017` of `instances_train2017.json`."""
    stem = path.name.removesuffix(".json").removesuffix(".coco").removeprefix("_")
    for prefix in (f"{kind}{end}" for end in ("_", "") for kind in _KINDS):
        if stem.startswith(prefix):
            return stem.removeprefix(prefix)
    return stem


def read_coco_image(path: Path, image: CocoImage, reading: Reading) -> UInt8[Tensor, "3 height width"]:
    """Read the image of an entry, at the size that the JSON states.

    Raises:
        DataError: the image cannot be read or has another size.
    """
    pixels = read_annotated_image(image.path, image.size, reading)
    if tuple(pixels.shape[1:]) != image.size:
        height, width = image.size
        raise DataError(
            image.path,
            f"is {pixels.shape[2]} x {pixels.shape[1]} pixels, but {path.name} says {width} x {height} "
            f"(image {image.id}); use the images that the annotations were made on",
        )
    return pixels

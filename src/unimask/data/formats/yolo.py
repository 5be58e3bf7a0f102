"""YOLO segmentation: a text file per image, one polygon per line as shares of width and height."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from unimask.config.tasks import Task
from unimask.data.drawn import Drawn, DrawnImage, Outline, box_ring, drawn_dataset, is_box, ring
from unimask.data.items import ItemDataset
from unimask.data.naming import Folders, images_below
from unimask.data.read import numbered_lines
from unimask.data.sources import SPLITS, Format, Source, Sources
from unimask.errors import DataError, some_of
from unimask.files import exists, is_file, is_folder, read_text

_MOST_BYTES = 10_000_000  # of a file of names
NAMES_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt")


@dataclass(frozen=True, kw_only=True)
class YoloSet:
    """The names of the classes, and where images are, by the key of the file (`train`, `val`, ...).

    A place is a folder of images, or a text file with the path of one on each line.
    """

    names: tuple[str, ...]
    has_points: bool  # a set of poses: lines hold a box and key points (`kpt_shape`)
    folders: Mapping[str, tuple[Path, ...]]


def names_file(root: Path) -> Path | None:
    """Return the file that names the classes of a YOLO folder, or none where there is no such folder."""
    for name in NAMES_FILES:
        if (root / name).is_file() and any(root.glob("**/labels/**/*.txt")):
            return root / name
    return None


def read_yolo_names(path: Path) -> YoloSet:
    """Read `data.yaml` (`names`, where the images of each part are) or `classes.txt` (a name a line).

    Raises:
        DataError: the file cannot be read, or does not say the names, or a folder is not there.
    """
    if path.suffix == ".txt":
        names = tuple(line.strip() for line in read_text(path).rstrip().splitlines())
        if "" in names:
            raise DataError(path, f"line {names.index('') + 1} is empty; line n names the class n - 1")
        return YoloSet(names=_checked(path, names), has_points=False, folders={"": (path.parent / "images",)})
    content = _read_yaml(path)
    given = content.get("names")
    if isinstance(given, dict) and set(given) == {str(index) for index in range(len(given))}:
        given = [given[str(index)] for index in range(len(given))]
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise DataError(path, f"names is {given!r}; expected a list, or numbers from 0 with a name each")
    names = _checked(path, tuple(given))
    count = str(content.get("nc") or len(names)).strip()
    if count != str(len(names)):
        raise DataError(path, f"nc is {count}, but names has {len(names)}; correct the one that is wrong")
    base = path.parent / str(content.get("path") or "")
    folders = {}
    for key in ("train", "val", "test"):
        value = content.get(key)
        listed = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str) for one in listed if value):
            raise DataError(path, f"{key} is {value!r}; expected a folder, or a list of folders")
        if value and not (key == "test" and _is_absent(path, base, listed)):
            folders[key] = tuple(_place(path, base, key, str(one)) for one in listed)
    return YoloSet(
        names=names, has_points="kpt_shape" in content, folders=folders or {"": (path.parent / "images",)}
    )


def _read_yaml(path: Path) -> dict[str, object]:
    """Read the keys of a YAML file; every value is text as it is written, or a list or object of such.

    So names are never taken for dates, numbers or truth values (`no`, `007`).
    """
    text = read_text(path, most=_MOST_BYTES)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.BaseLoader)):
            raise DataError(path, "repeats a part of itself (an alias, *name); write it out")
        content = yaml.load(text, Loader=yaml.BaseLoader)  # builds text, lists and dicts, nothing else
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise DataError(path, f"is no valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise DataError(path, "holds no keys; expected names, train and val")
    return {str(key): None if value in ("", "null", "~") else value for key, value in content.items()}


def _checked(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names) or not all(names):
        raise DataError(path, f"the names are {some_of(names)}; expected at least one, all different")
    return names


def _is_absent(path: Path, base: Path, listed: Sequence[object]) -> bool:
    """Return whether the folders of a part are missing, as those of the test images of many sets."""
    return not any(exists(place) for text in listed for place in _tried(path, base, str(text)))


def _tried(path: Path, base: Path, text: str) -> list[Path]:
    """Return where the images of a part may be; exports of some tools are off by one `..`."""
    return [base / text, path.parent / text, path.parent / text.removeprefix("../")]


def _place(path: Path, base: Path, key: str, text: str) -> Path:
    """Return where the images of a part are."""
    tried = _tried(path, base, text)
    for place in tried:
        if is_folder(place) or (place.suffix == ".txt" and is_file(place)):
            return place
    raise DataError(path, f"{key} is {text!r}, which is no folder here; looked for {some_of(tried)}")


def _images(place: Path) -> list[Path]:
    """Return the images in a folder, or those that a text file lists.

    Paths begin at the list's folder, or higher up: CVAT writes `data/images/train/a.jpg` for
    `images/train/a.jpg`.
    """
    if place.is_dir():
        return images_below(place)
    found = []
    for number, line in numbered_lines(place):
        if line.startswith("#"):
            continue
        parts = [part for part in line.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        ends = [place.parent.joinpath(*parts[start:]) for start in range(len(parts))]
        present = [end for end in ends if end.is_file()]
        if not present:
            raise DataError(place, f"line {number}: there is no image {line!r} here")
        found.append(present[0])
    return found


def open_yolo(names: Sequence[str], folders: Sequence[Path], *, has_points: bool = False) -> ItemDataset:
    """Open the images of some places (`YoloSet`); of lines with key points only the box is read.

    Labels lie in the folder of the same path with `labels` for `images`.
    An image without a text file, which is said, or with an empty one has no objects. A line `class x y width
    height` is a box, taken as a filled rectangle; a set of polygons and boxes is said.

    Raises:
        DataError: there are no images, or a line is neither a polygon nor a box; file and line are named.
    """
    entries, files, without = [], Folders(), list[Path]()
    images_of: dict[Path, Path] = {}
    for folder in folders:
        for image in dict.fromkeys(_images(folder)):
            place, name = _labels_beside(image.parent), f"{image.stem}.txt"
            found = files.file(place, name)
            source = found or place / name
            if found is None:
                without.append(image)
            elif images_of.setdefault(source, image) != image:
                raise DataError(
                    source,
                    f"can be for {images_of[source].name} and for {image.name}; move one of them out",
                )
            objects = _objects(source, names, has_points) if found is not None else ()
            entries.append(DrawnImage(image=image, source=source, size=(), objects=objects))
    if not any(entry.objects for entry in entries):
        raise DataError(
            folders[0],
            f"has {len(entries)} images and no labels; looked in "
            + some_of(sorted({str(entry.source.parent) for entry in entries})),
        )
    poses = "is a set of poses (kpt_shape): of each line the box is read, its key points are left out"
    unlabelled = f"{len(without)} of {len(entries)} images have no text file and are taken as without objects"
    regions = [drawn.region for entry in entries for drawn in entry.objects]
    boxes = sum(map(is_box, regions))
    mixed = f"{boxes} of {len(regions)} objects are boxes and not polygons: their masks are filled rectangles"
    said = (
        *(poses,) * has_points,
        *(f"{unlabelled}: {some_of((image.name for image in without), 3)}",) * bool(without),
        *(mixed,) * (0 < boxes < len(regions)),
    )
    return drawn_dataset(names, entries, left_out=said)


def _labels_beside(folder: Path) -> Path:
    parts = list(folder.parts)
    for index in reversed(range(len(parts))):
        if parts[index] == "images":
            parts[index] = "labels"
            return Path(*parts)
    return folder.parent / "labels"


def _objects(source: Path, names: Sequence[str], has_points: bool) -> tuple[Drawn, ...]:
    found = []
    for number, line in numbered_lines(source):
        words, where = line.split(), f"line {number}"
        if has_points:
            words = words[:5]
        if not words[0].isdecimal() or int(words[0]) >= len(names):
            raise DataError(source, f"{where}: class {words[0]!r} is none of 0 to {len(names) - 1}")
        if len(words) == 6:
            raise DataError(source, f"{where}: a box with a score is a prediction; leave its last number out")
        if len(words) == 5:
            x, y, width, height = ring(source, where, [*words[1:], 0, 0])[:4]
            if width < 0 or height < 0:
                raise DataError(source, f"{where}: a box is {width:g} wide and {height:g} high; correct it")
            shape = box_ring(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        else:
            shape = ring(source, where, words[1:])
        if shape.min() < -0.01 or shape.max() > 1.01:
            raise DataError(
                source,
                f"{where}: a coordinate is {shape.max():g}; expected shares of width and height, 0 to 1",
            )
        found.append(Drawn(label=int(words[0]), region=Outline(rings=(shape,), relative=True), where=where))
    return tuple(found)


def _find(path: Path, task: Task) -> Sources:
    file = names_file(path)
    if file is None:
        return {}
    found = read_yolo_names(file)
    places = found.folders if "" not in found.folders else _parts(path)
    return {
        split: Source(path=file, open=partial(open_yolo, found.names, folders, has_points=found.has_points))
        for split, folders in places.items()
    }


def _parts(root: Path) -> dict[str, tuple[Path, ...]]:
    """Return the folders of images where `data.yaml` names none: by split, or all in one."""
    found = {}
    for split, words in SPLITS.items():
        places = [place for word in words for place in (root / "images" / word, root / word / "images")]
        present = tuple(place for place in places if place.is_dir())
        if present:
            found[split] = present[:1]
    return found or {"": (root / "images",)}


YOLO = Format(
    layouts="  data.yaml (or classes.txt), images/, labels/ of .txt files (YOLO)",
    find=_find,
)

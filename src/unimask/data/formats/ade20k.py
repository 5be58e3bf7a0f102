"""ADE20K of the scene parsing challenge as unzipped, with the files that detectron2's scripts add."""

import re
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from numpy import ndarray

from unimask.config.tasks import Task
from unimask.data.category_tables import load_categories
from unimask.data.formats.coco_file import Record, load_json, records, whole
from unimask.data.formats.coco_instances import open_instances
from unimask.data.formats.coco_panoptic import open_panoptic
from unimask.data.formats.folders_pairs import pair_up
from unimask.data.formats.folders_scheme import CLASSES_FILE
from unimask.data.items import ItemDataset
from unimask.data.numbered import NumberScheme, numbered_dataset
from unimask.data.pillow import open_image
from unimask.data.read import read_labels
from unimask.data.sources import Format, Source, Sources, refused
from unimask.errors import DataError

FOLDER = "ADEChallengeData2016"
CLASSES, SHIFTED, OBJECTS = "annotations", "annotations_detectron2", "annotations_instance"

_WORDS = {"train": "training", "val": "validation"}
_JSON = re.compile(r"ade20k_(?P<kind>panoptic|instance)_(train|val)\.json")
_OBJECTS_OF_CLASS = 256  # class and object in one number: class x 256 + object


def open_classes(root: Path, split: str, folder: str) -> ItemDataset:
    """Open the classes of `annotations` (0 is void) or of `annotations_detectron2` (255 is void).

    Raises:
        DataError: images or labels are missing.
    """
    pairs = pair_up(root / "images" / _WORDS[split], root / folder / _WORDS[split])
    return numbered_dataset(pairs, _scheme(shifted=folder == SHIFTED, divisor=1))


def open_objects(root: Path, split: str) -> ItemDataset:
    """Open the stuff of `annotations` with the things of `annotations_instance` on top.

    Pixels of a thing class that belong to no object are void, as in detectron2's panoptic files.

    Raises:
        DataError: images or labels are missing.
    """
    pairs = pair_up(root / "images" / _WORDS[split], root / OBJECTS / _WORDS[split])
    scheme = _scheme(shifted=False, divisor=_OBJECTS_OF_CLASS)
    return numbered_dataset(pairs, scheme, read_objects)


def read_objects(path: Path) -> Int32[ndarray, "height width"]:
    """Read class x 256 + object of each pixel from a map of objects and the one of classes; 0 is void.

    In the former red is the class (1 to 100, the things in the order of their ids) and green the object.

    Raises:
        DataError: one of them is missing or damaged, or they do not fit each other.
    """
    image = open_image(path, rotate=False)
    if image.mode not in ("RGB", "RGBA"):
        raise DataError(path, f"is of mode {image.mode}; red is the class and green the object")
    channels = np.asarray(image.convert("RGB")).astype(np.int32)
    of_things, objects = channels[..., 0], channels[..., 1]
    classes_path = path.parents[2] / CLASSES / path.parent.name / path.name
    classes = read_labels(classes_path)
    if classes.shape != objects.shape:
        raise DataError(path, f"is of another size than {classes_path}; unpack both again")
    things = _things()
    if int(of_things.max(initial=0)) >= len(things):
        raise DataError(path, f"has class {of_things.max()}; there are 1 to {len(things) - 1}")
    unknown = (objects > 0) & (of_things == 0)
    if unknown.any():
        raise DataError(path, f"object {objects[unknown][0]} has no class (red is 0)")
    stuff = np.where(np.isin(classes, things), 0, classes * _OBJECTS_OF_CLASS)
    return np.where(objects > 0, things[of_things] * _OBJECTS_OF_CLASS + objects, stuff)


@cache
def _things() -> Int32[ndarray, " things_and_none"]:
    """Return the class of each number of a thing, from 1 on; number 0 is none."""
    table = load_categories("ade20k")
    return np.array([0, *(n for n, thing in zip(table.file_ids, table.is_thing) if thing)], dtype=np.int32)


def _scheme(*, shifted: bool, divisor: int) -> NumberScheme:
    categories = load_categories("ade20k")
    return NumberScheme(
        categories=categories,
        classes=tuple(number - shifted for number in categories.file_ids),
        ignored=(255,) if shifted else (0,),
        plain=0,
        divisor=divisor,
        way_out="copy it again from the data set",
    )


def open_json(root: Path, kind: str, split: str) -> ItemDataset:
    """Open a JSON of detectron2's scripts ("panoptic" or "instance"), with the names of the 150 categories.

    The scripts name things by two lists that differ; ids are the same in both and count the 150 from 0.
    Stuff that is wholly under things is listed there and left out here.

    Raises:
        DataError: the JSON cannot be used, or images are missing.
    """
    path, folders = _json(root, kind, split), [root / "images" / _WORDS[split]]
    content = load_json(path)
    content = {**content, "categories": list(_with_names(path, content))}
    if kind == "panoptic":
        return open_panoptic(path, content, folders=folders, strict=False)
    return open_instances(path, content, folders=folders)


def _with_names(path: Path, content: Record) -> Iterator[Record]:
    table = load_categories("ade20k")
    for entry in records(path, content, "categories"):
        number = whole(path, entry, "id", f"category {entry.get('name')!r}")
        if not 0 <= number < len(table):
            raise DataError(path, f"category {entry.get('name')!r} has id {number}; expected 0 to 149")
        yield {
            **entry,
            "name": table.names[number],
            "isthing": int(table.is_thing[number]),
            "color": list(table.colors[number]),
        }


def _json(root: Path, kind: str, split: str) -> Path:
    return root / f"ade20k_{kind}_{split}.json"


def _find(path: Path, task: Task) -> Sources:
    """Return the sets of ADE20K at the folder of `images` and `annotations`, the one above, or at a JSON.

    The JSON is one of detectron2's scripts; files of its kind are then read, whatever the task.
    A folder is ADE20K if its images are called `ADE_...` and no `classes.json` says otherwise.
    """
    if path.is_file():
        named = _JSON.fullmatch(path.name)
        if named is None or not _is_ade20k(path.parent):
            return {}
        return {
            split: Source(path=file, open=partial(open_json, path.parent, named["kind"], split))
            for split in _WORDS
            if (file := _json(path.parent, named["kind"], split)).is_file()
        }
    root = next((place for place in (path, path / FOLDER) if _is_ade20k(place)), None)
    if root is None:
        return {}
    return {
        split: _source(root, split, task)
        for split, word in _WORDS.items()
        if (root / "images" / word).is_dir()
    }


def _is_ade20k(root: Path) -> bool:
    names = (
        file.name
        for word in _WORDS.values()
        if (root / "images" / word).is_dir()
        for file in (root / "images" / word).iterdir()
        if not file.name.startswith(".")
    )
    return not (root / CLASSES_FILE).exists() and next(names, "").startswith("ADE_")


def _source(root: Path, split: str, task: Task) -> Source:
    """Return the first annotations that serve the task."""
    word = _WORDS[split]
    classes, objects = root / CLASSES / word, root / OBJECTS / word
    of_json = {
        kind: Source(path=_json(root, kind, split), open=partial(open_json, root, kind, split))
        for kind in ("panoptic", "instance")
        if _json(root, kind, split).is_file()
    }
    if task == "semantic":
        folders = [folder for folder in (classes, root / SHIFTED / word) if folder.is_dir()]
        if folders:
            return Source(path=folders[0], open=partial(open_classes, root, split, folders[0].parent.name))
    if task in ("instance", "detection") and "instance" in of_json:
        return of_json["instance"]
    if "panoptic" in of_json:
        return of_json["panoptic"]
    if task != "semantic" and classes.is_dir() and objects.is_dir():
        return Source(path=objects, open=partial(open_objects, root, split))
    if task == "semantic":
        return refused(classes, "no such folder; unzip ADEChallengeData2016.zip again")
    return refused(
        objects,
        f"no such folder, and no {_json(root, 'panoptic', split).name}: the task {task!r} needs objects; "
        f"unpack annotations_instance.tar in {root.name}, or run detectron2's prepare_ade20k_pan_seg.py",
    )


ADE20K = Format(
    layouts="  images/training/, images/validation/ with annotations/ (ADE20K)",
    find=_find,
)

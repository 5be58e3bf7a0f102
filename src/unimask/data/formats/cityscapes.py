"""Cityscapes as unzipped: `leftImg8bit/` beside `gtFine/`, a folder for each split and city in both."""

import re
from functools import partial
from pathlib import Path

from unimask.config.tasks import Task
from unimask.data.category_tables import load_categories
from unimask.data.items import ItemDataset
from unimask.data.numbered import LabelPair, NumberScheme, numbered_dataset
from unimask.data.sources import Format, Source, Sources, refused
from unimask.errors import DataError

IMAGES, TRUTH = "leftImg8bit", "gtFine"
CLASS_IDS, TRAIN_IDS, INSTANCE_IDS = "labelIds", "labelTrainIds", "instanceIds"

_LABELS = range(34)  # ids of all labels, of which 19 are evaluated
_PANOPTIC_JSON = re.compile(r"cityscapes_panoptic_(train|val|test)(_trainId)?\.json")


def open_cityscapes(root: Path, split: str, task: Task) -> ItemDataset:
    """Open a split with 19 categories, 8 of them things; everything else is void.

    The semantic ground truth is read from `labelIds`, else from `labelTrainIds`; that of other tasks from
    `instanceIds`, where a thing without an instance number (a group) is a crowd region.

    Raises:
        DataError: there are no images, or one has no labels of the kind that the task needs.
    """
    kind = _kind(root / TRUTH / split, task)
    pairs = []
    for city in sorted(folder for folder in (root / IMAGES / split).iterdir() if folder.is_dir()):
        pairs += _pairs(city, root / TRUTH / split / city.name, kind)
    if not pairs:
        raise DataError(root / IMAGES / split, f"has no images CITY/*_{IMAGES}.png; unzip them again")
    return numbered_dataset(pairs, number_scheme(kind))


def number_scheme(kind: str) -> NumberScheme:
    """Return what the numbers in label maps of Cityscapes mean: CLASS_IDS, TRAIN_IDS or INSTANCE_IDS.

    Source: cityscapesScripts, `helpers/labels.py` (ids, train ids, names, colours, which are evaluated) and
    `preparation/json2instanceImg.py` (instance ids: label x 1000 + number, or the label alone).
    """
    categories = load_categories("cityscapes")
    by_train_id = kind == TRAIN_IDS
    classes = tuple(range(len(categories))) if by_train_id else categories.file_ids
    return NumberScheme(
        categories=categories,
        classes=classes,
        ignored=(255,) if by_train_id else tuple(number for number in _LABELS if number not in classes),
        plain=1000 if kind == INSTANCE_IDS else 0,
        divisor=1000 if kind == INSTANCE_IDS else 1,
        way_out="copy it again from the data set",
    )


def _kind(truth: Path, task: Task) -> str:
    """Return which label maps serve the task, by those of the first city."""
    cities = sorted(folder for folder in truth.iterdir() if folder.is_dir()) if truth.is_dir() else []
    if not cities:
        raise DataError(truth, f"no labels; unzip gtFine_trainvaltest.zip beside {IMAGES}/")
    wanted = (CLASS_IDS, TRAIN_IDS) if task == "semantic" else (INSTANCE_IDS,)
    for kind in wanted:
        if any(cities[0].glob(f"*_{TRUTH}_{kind}.png")):
            return kind
    if task == "semantic":
        raise DataError(cities[0], f"has no *_{TRUTH}_{CLASS_IDS}.png; unzip gtFine_trainvaltest.zip again")
    raise DataError(
        cities[0],
        f"has no *_{TRUTH}_{INSTANCE_IDS}.png, which the task {task!r} needs; unzip gtFine_trainvaltest.zip "
        "again (other labels serve the task 'semantic' only)",
    )


def _pairs(images: Path, truth: Path, kind: str) -> list[LabelPair]:
    """Pair the images of a city with their labels by name."""
    ending = f"_{IMAGES}.png"
    stems = sorted(file.name.removesuffix(ending) for file in images.iterdir() if file.name.endswith(ending))
    present = {file.name for file in truth.iterdir()} if truth.is_dir() else set()
    names = [f"{stem}_{TRUTH}_{kind}.png" for stem in stems]
    missing = [name for name in names if name not in present]
    if missing:
        raise DataError(
            truth, f"{len(missing)} of {len(names)} label maps are missing, the first is {missing[0]!r}"
        )
    return [
        LabelPair(image=images / f"{stem}{ending}", labels=truth / name) for stem, name in zip(stems, names)
    ]


def _find(path: Path, task: Task) -> Sources:
    """Return the sets at the folder of `leftImg8bit` and `gtFine`, one of the two, or a JSON in `gtFine`.

    A panoptic JSON stands for the whole set: it is made from the instance ids that are read here.
    """
    if path.is_file():
        places = [path.parent.parent] if _PANOPTIC_JSON.fullmatch(path.name) else []
    else:
        places = [path, *([path.parent] if path.name in (IMAGES, TRUTH) else [])]
    root = next((place for place in places if (place / IMAGES).is_dir()), None)
    if root is None:
        return {}
    sets = {
        split: Source(path=root / TRUTH / split, open=partial(open_cityscapes, root, split, task))
        for split in ("train", "val")
        if (root / IMAGES / split).is_dir()
    }
    if (root / IMAGES / "test").is_dir():
        reason = "the ground truth of Cityscapes' test images is not public; evaluate on 'val'"
        sets["test"] = refused(root / IMAGES / "test", reason)
    return sets


CITYSCAPES = Format(layouts="  leftImg8bit/ with gtFine/ (Cityscapes)", find=_find)

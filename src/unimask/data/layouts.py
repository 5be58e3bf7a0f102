"""The layouts of data sets on disk: which sets of annotated pictures a folder or a JSON file holds."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

from unimask.config import Task
from unimask.data.box_views import BoxesAround, Listed
from unimask.data.coco import CocoInstances
from unimask.data.coco_boxes import CocoBoxes
from unimask.data.coco_file import Record, load_json
from unimask.data.coco_panoptic import CocoPanoptic
from unimask.data.folders import LabelFolder, find_folders, pair_up, read_scheme, read_splits
from unimask.data.messages import some_of
from unimask.errors import DataError
from unimask.structures import BoxDataset

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}

LAYOUTS = """expected one of
  panoptic_train.json, panoptic_val.json (COCO panoptic), PNGs in panoptic_train/ or panoptic/, pictures in
    images/
  instances_train.json, instances_val.json (COCO instances), pictures in images/
  annotations/instances_train2017.json, annotations/panoptic_train2017.json, ..., pictures in train2017/, ...
  train/_annotations.coco.json, valid/_annotations.coco.json, pictures beside them (Roboflow)
  images/train/, images/val/ with labels/train/, labels/val/ (label pictures), and classes.json
  train/images/ with train/labels/, or train/ with train_labels/ (and so on for val), and classes.json
  images/ with labels/ (one set), and classes.json, and splits.json if it is split
  detection_train.json, detection_val.json (COCO boxes, for detection), pictures in images/
  one JSON file of COCO; or the word shapes or shapes:HEIGHTxWIDTH (a generated set)"""

_COCO_NAME = re.compile(
    r"_?(?P<kind>instances|panoptic|detection|annotations|coco|labels|result)?"
    r"_?(?P<split>[a-z]*?)_?(?P<year>20\d\d)?(\.coco)?\.json"
)
_UNSPLIT = ("", "default", "all", "coco")


@runtime_checkable
class ListedBoxes(BoxDataset, Protocol):
    """A data set of boxes that knows the ids of its samples without reading them."""

    @property
    def image_ids(self) -> tuple[str, ...]:
        """In the order of the samples."""


Found = TypeVar("Found", bound=Listed | ListedBoxes)


@dataclass(frozen=True, kw_only=True)
class Opener(Generic[Found]):
    """What is made of annotations: data sets of segments, or of boxes."""

    coco: Callable[[Path], Found]
    folder: Callable[[LabelFolder], Found]


@dataclass(frozen=True, kw_only=True)
class Source(Generic[Found]):
    """One set of annotated pictures; `open` reads its annotations, not its pictures."""

    path: Path
    open: Callable[[], Found]


_ORDERS: Mapping[Task, tuple[str, ...]] = {
    "panoptic": ("panoptic", "", "instances"),
    "instance": ("instances", "", "panoptic"),
    "semantic": ("panoptic", "", "instances"),
    "detection": ("detection", "instances", "", "panoptic"),
}
"""Which kind of COCO's files a task prefers; "" are those whose name does not say."""


def sets_in(root: Path, task: Task, opener: Opener[Found]) -> dict[str, Source[Found]]:
    """The sets below a folder, by split ("train", "val", "test"); "" is one that is not split.

    Instance segmentation looks for COCO instances first, detection for COCO boxes, the other tasks for COCO
    panoptic; label pictures come last.

    Raises:
        DataError: no layout is recognised, or there are several annotations for one split.
    """
    for kind in _ORDERS[task]:
        sets = _coco_sets(root, kind, opener)
        if sets:
            return sets
    folders = find_folders(root, SPLITS)
    if not folders:
        raise DataError(root, f"found {_contents(root)}; {LAYOUTS}")
    splits = read_splits(root) if "" in folders else {}
    if splits:
        return {
            split_of_word(word) or word: Source(
                path=root, open=partial(_open_folder, opener, root, *folders[""], tuple(names))
            )
            for word, names in splits.items()
        }
    return {
        split: Source(path=labels, open=partial(_open_folder, opener, root, pictures, labels, None))
        for split, (pictures, labels) in folders.items()
    }


def sets_around(path: Path, opener: Opener[Found]) -> dict[str, Source[Found]]:
    """The sets that one JSON file stands for: itself, and those of other splits that are named alike.

    Raises:
        DataError: the file is no JSON.
    """
    if path.suffix.lower() != ".json":
        raise DataError(path, "is a file, but no JSON; " + LAYOUTS)
    named = _kind_and_split(path)
    split = named[1] if named is not None else ""
    beside = split or split_of_word(path.parent.name)
    found = {}
    for name, words in SPLITS.items() if beside else ():
        for own, word in ((own, word) for own in SPLITS[beside] for word in words):
            twin = (
                path.with_name(path.name.replace(own, word))
                if split
                else path.parent.parent / word / path.name
            )
            if twin != path and twin.is_file() and name != beside:
                found[name] = Source(path=twin, open=partial(opener.coco, twin))
    return {**found, beside: Source(path=path, open=partial(opener.coco, path))}


def split_of_word(word: str) -> str:
    """The split that a word means, "" if none."""
    return next((split for split, words in SPLITS.items() if word.lower() in words), "")


def open_coco(path: Path) -> Listed:
    """The COCO file's reader; panoptic files are known by their `segments_info`."""
    content = load_json(path)
    return CocoPanoptic(path, content) if _is_panoptic(content) else CocoInstances(path, content)


def open_coco_boxes(path: Path) -> ListedBoxes:
    """The boxes of a COCO file; of a panoptic one those around its things."""
    content = load_json(path)
    return BoxesAround(CocoPanoptic(path, content)) if _is_panoptic(content) else CocoBoxes(path, content)


def _is_panoptic(content: Record) -> bool:
    entries = content.get("annotations")
    first = entries[0] if isinstance(entries, list) and entries else None
    return isinstance(first, dict) and "segments_info" in first


def _as_it_is(folder: LabelFolder) -> Listed:
    return folder


SEGMENTS: Opener[Listed] = Opener(coco=open_coco, folder=_as_it_is)
BOXES: Opener[ListedBoxes] = Opener(coco=open_coco_boxes, folder=BoxesAround)


def _open_folder(
    opener: Opener[Found], root: Path, pictures: Path, labels: Path, names: tuple[str, ...] | None
) -> Found:
    pairs = pair_up(pictures, labels, names)
    return opener.folder(LabelFolder(pairs, read_scheme(root, pairs)))


def _coco_sets(root: Path, kind: str, opener: Opener[Found]) -> dict[str, Source[Found]]:
    """The COCO files of one kind ("instances", "panoptic", or "" for those without), by split."""
    found: dict[str, list[Path]] = {}
    for place in (root, root / "annotations", *(root / word for words in SPLITS.values() for word in words)):
        for path in sorted(place.glob("*.json")):
            named = _kind_and_split(path)
            if named is not None and named[0] == kind:
                split = split_of_word(place.name) if place != root else ""
                found.setdefault(split or named[1], []).append(path)
    for split, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(str(path.relative_to(root)) for path in paths)
            raise DataError(
                root, f"has several annotations for {split or 'one set'}: {names}; name one JSON file"
            )
    return {split: Source(path=path, open=partial(opener.coco, path)) for split, (path,) in found.items()}


def _kind_and_split(path: Path) -> tuple[str, str] | None:
    """What the name of a COCO file says; None for the names of other files."""
    match = _COCO_NAME.fullmatch(path.name.lower())
    if match is None:
        return None
    kind = match["kind"] if match["kind"] in ("instances", "panoptic", "detection") else ""
    if match["split"] in _UNSPLIT:
        return (kind, "") if match["kind"] or match["split"] else None
    split = split_of_word(match["split"])
    return (kind, split) if split else None


def _contents(root: Path) -> str:
    names = sorted(
        entry.name + "/" * entry.is_dir() for entry in root.iterdir() if not entry.name.startswith(".")
    )
    return some_of(names, 10) if names else "an empty folder"

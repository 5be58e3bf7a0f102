"""COCO: which JSON files of a folder are annotations of which split, and what they hold."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from unimask.config.tasks import Task
from unimask.data.formats.coco_file import Record, load_json
from unimask.data.formats.coco_instances import open_boxes, open_instances
from unimask.data.formats.coco_panoptic import open_panoptic
from unimask.data.items import ItemDataset
from unimask.data.sources import SPLITS, Format, Source, Sources, split_of_word
from unimask.errors import DataError

_NAME = re.compile(
    r"_?(?P<kind>instances|panoptic|detection|annotations|coco|labels|result)?"
    r"_?(?P<split>[a-z]*?)_?(?P<year>20\d\d)?(\.coco)?\.json"
)
_UNSPLIT = ("", "default", "all", "coco")
_ORDERS: Mapping[Task, tuple[str, ...]] = {
    "panoptic": ("panoptic", "", "instances"),
    "instance": ("instances", "", "panoptic"),
    "semantic": ("panoptic", "", "instances"),
    "detection": ("detection", "instances", "", "panoptic"),
}
"""Which kind of file a task prefers; "" are those whose name does not say."""


def open_coco(path: Path, task: Task) -> ItemDataset:
    """Open a COCO JSON; panoptic files are recognised by their `segments_info`.

    Raises:
        DataError: the file, one of its entries or an image cannot be used.
    """
    content = load_json(path)
    if _is_panoptic(content):
        return open_panoptic(path, content)
    return open_boxes(path, content) if task == "detection" else open_instances(path, content)


def _is_panoptic(content: Record) -> bool:
    entries = content.get("annotations")
    first = entries[0] if isinstance(entries, list) and entries else None
    return isinstance(first, dict) and "segments_info" in first


def _find(path: Path, task: Task) -> Sources:
    if path.is_file():
        return _around(path, task) if path.suffix.lower() == ".json" else {}
    return next((found for kind in _ORDERS[task] if (found := _in_folder(path, kind, task))), {})


def _around(path: Path, task: Task) -> Sources:
    """Return the set of a file, and those of other splits in files that are named alike."""
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
                found[name] = Source(path=twin, open=partial(open_coco, twin, task))
    return {**found, beside: Source(path=path, open=partial(open_coco, path, task))}


def _in_folder(root: Path, kind: str, task: Task) -> Sources:
    """Return the files of one kind, by split."""
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
    return {split: Source(path=path, open=partial(open_coco, path, task)) for split, (path,) in found.items()}


def _kind_and_split(path: Path) -> tuple[str, str] | None:
    """Return kind and split from the name of a COCO file; None for the names of other files."""
    match = _NAME.fullmatch(path.name.lower())
    if match is None:
        return None
    kind = match["kind"] if match["kind"] in ("instances", "panoptic", "detection") else ""
    if match["split"] in _UNSPLIT:
        return (kind, "") if match["kind"] or match["split"] else None
    split = split_of_word(match["split"])
    return (kind, split) if split else None


COCO = Format(
    layouts="""\
  panoptic_train.json, PNGs in panoptic_train/ or panoptic/, images/ (COCO panoptic)
  instances_train.json, images/ (COCO instances)
  detection_train.json, images/ (COCO boxes)
  annotations/instances_train2017.json or panoptic_train2017.json, train2017/ (COCO as published)
  train/_annotations.coco.json, images beside it (Roboflow)
  one JSON file of COCO""",
    find=_find,
)

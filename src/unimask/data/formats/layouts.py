"""The layouts of data sets on disk: which sets of annotated pictures a folder or a JSON file holds."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from unimask.config.images import Task
from unimask.data.formats.coco import CocoInstances
from unimask.data.formats.coco_boxes import CocoBoxes
from unimask.data.formats.coco_file import Record, load_json
from unimask.data.formats.coco_panoptic import CocoPanoptic
from unimask.data.formats.cvat import CVAT_FILE, cvat_subsets, is_cvat, open_cvat, read_cvat
from unimask.data.formats.folders import (
    CLASSES_FILE,
    LabelFolder,
    find_folders,
    pair_up,
    read_scheme,
    read_splits,
)
from unimask.data.formats.label_studio import is_label_studio, open_label_studio
from unimask.data.formats.labelme import labelme_files, labelme_names, open_labelme
from unimask.data.formats.published import published_sets
from unimask.data.formats.voc import VocObjects, find_voc, read_voc_scheme, voc_splits
from unimask.data.formats.voc_boxes import (
    find_voc_boxes,
    open_voc_boxes,
    voc_box_names,
    voc_box_splits,
    voc_files,
)
from unimask.data.formats.yolo import find_yolo, open_yolo, read_yolo_names
from unimask.data.sources import SPLITS, Listed, Source, split_of_word
from unimask.errors import DataError, some_of

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
  data.yaml (or classes.txt) with images/ and labels/ of .txt files (YOLO segmentation)
  SegmentationClass/ and SegmentationObject/ with JPEGImages/ and ImageSets/Segmentation/ (Pascal VOC)
  Annotations/ of .xml files with JPEGImages/ and ImageSets/Main/ (Pascal VOC, boxes); also .xml files in
    train/, val/, beside their pictures
  a JSON beside each picture, also in train/, val/ (LabelMe)
  one JSON of tasks with its pictures beside it or in images/ (Label Studio)
  annotations.xml (or train.xml, val.xml) with pictures beside it or in images/ (CVAT for images)
  leftImg8bit/ with gtFine/ (Cityscapes); images/training/, images/validation/ with annotations/ (ADE20K)
  stuffthingmaps/train2017/, stuffthingmaps/val2017/ with pictures in train2017/, val2017/ (COCO-Stuff)
  training/, validation/ with images/, and config_v1.2.json (Mapillary Vistas)
  one JSON file of COCO or of Label Studio, one XML of CVAT; or the word shapes or
    shapes:HEIGHTxWIDTH (a generated set)"""

_COCO_NAME = re.compile(
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
"""Which kind of COCO's files a task prefers; "" are those whose name does not say."""


def sets_in(root: Path, task: Task) -> dict[str, Source]:
    """The sets below a folder, by split ("train", "val", "test"); "" is one that is not split.

    Published sets and exports of annotation tools are looked for first, since each has a file or a folder
    that nothing else has.

    XML files of Pascal VOC that stand alone come last: all others say more than boxes.

    Instance segmentation looks for COCO instances first, detection for COCO boxes, the other tasks for COCO
    panoptic; then come label pictures.

    Raises:
        DataError: no layout is recognised, or there are several annotations for one split.
    """
    published = published_sets(root, task)
    if published:
        return published
    of_tool = _sets_of_tool(root, task)
    if of_tool:
        return of_tool
    for kind in _ORDERS[task]:
        sets = _coco_sets(root, kind, task)
        if sets:
            return sets
    folders = find_folders(root, SPLITS)
    boxes = _voc_box_sets(root) if not folders else {}
    if boxes:
        return boxes
    if not folders:
        raise DataError(root, f"found {_contents(root)}; {LAYOUTS}")
    splits = read_splits(root) if "" in folders else {}
    if splits:
        return {
            split_of_word(word) or word: Source(
                path=root, open=partial(_open_folder, root, *folders[""], tuple(names))
            )
            for word, names in splits.items()
        }
    return {
        split: Source(path=labels, open=partial(_open_folder, root, pictures, labels, None))
        for split, (pictures, labels) in folders.items()
    }


def sets_around(path: Path, task: Task) -> dict[str, Source]:
    """The sets that one file stands for: itself, and those of other splits that are named alike.

    A file of a published set stands for that set.

    Raises:
        DataError: the file is no JSON and no XML of CVAT.
    """
    published = published_sets(path, task)
    if published:
        return published
    if is_cvat(path):
        return _cvat_sets(path)
    if is_label_studio(path):
        return {"": Source(path=path, open=partial(open_label_studio, path))}
    if path.suffix.lower() != ".json":
        raise DataError(path, "is a file, but no JSON and no XML of CVAT; " + LAYOUTS)
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


def open_coco(path: Path, task: Task) -> Listed:
    """The COCO file's reader; panoptic files are known by their `segments_info`."""
    content = load_json(path)
    if _is_panoptic(content):
        return CocoPanoptic(path, content)
    return CocoBoxes(path, content) if task == "detection" else CocoInstances(path, content)


def _is_panoptic(content: Record) -> bool:
    entries = content.get("annotations")
    first = entries[0] if isinstance(entries, list) and entries else None
    return isinstance(first, dict) and "segments_info" in first


def _sets_of_tool(root: Path, task: Task) -> dict[str, Source]:
    """The sets of an annotation tool's export, by split; none where there is no such export."""
    voc = find_voc(root) if not (root / CLASSES_FILE).exists() else None
    if voc is not None and task == "detection" and voc_files(voc):
        return _voc_box_sets(root)  # of VOC's photos many more have boxes than masks
    if voc is not None:
        scheme = read_voc_scheme(voc)
        return {
            split_of_word(word) or word: Source(path=voc, open=partial(VocObjects, voc, scheme, stems))
            for word, stems in voc_splits(voc).items()
        }
    if is_cvat(root / CVAT_FILE):
        return _cvat_sets(root / CVAT_FILE)
    parts = {split_of_word(path.stem): path for path in sorted(root.glob("*.xml")) if is_cvat(path)}
    if parts and "" not in parts:
        return _cvat_files(parts)
    yolo = find_yolo(root)
    if yolo is not None:
        found = read_yolo_names(yolo)
        return {
            split: Source(path=yolo, open=partial(open_yolo, found.names, folders))
            for split, folders in (found.folders if "" not in found.folders else _yolo_parts(root)).items()
        }
    tasks = [path for path in sorted(root.glob("*.json")) if is_label_studio(path)]
    if len(tasks) > 1:
        raise DataError(root, f"has several lists of tasks: {some_of(p.name for p in tasks)}; name one")
    if tasks:
        return {"": Source(path=tasks[0], open=partial(open_label_studio, tasks[0]))}
    return _labelme_sets(root)


def _yolo_parts(root: Path) -> dict[str, tuple[Path, ...]]:
    """The folders of pictures where `data.yaml` names none: by split, or all in one."""
    found = {}
    for split, words in SPLITS.items():
        places = [place for word in words for place in (root / "images" / word, root / word / "images")]
        present = tuple(place for place in places if place.is_dir())
        if present:
            found[split] = present[:1]
    return found or {"": (root / "images",)}


def _labelme_sets(root: Path) -> dict[str, Source]:
    """Folders with a JSON of LabelMe per picture; all of them share their names."""
    places = {"": [root, root / "annotations", root / "labels", root / "json"]}
    places.update({split: [root / word for word in words] for split, words in SPLITS.items()})
    files = {}
    for split, folders in places.items():
        listed = [labelme_files(folder) for folder in folders if folder.is_dir()]
        files[split] = next((tuple(paths) for paths in listed if paths), ())
    chosen = {split: paths for split, paths in files.items() if paths and split} or {"": files[""]}
    every = [path for paths in chosen.values() for path in paths]
    if not every:
        return {}
    names = labelme_names(every)
    return {
        split: Source(path=paths[0].parent, open=partial(open_labelme, names, paths))
        for split, paths in chosen.items()
    }


def _voc_box_sets(root: Path) -> dict[str, Source]:
    """Photos with an XML of Pascal VOC each; all of them share their names."""
    found = find_voc_boxes(root)
    files = voc_box_splits(found) if found is not None else {}
    for split, words in SPLITS.items() if found is None else ():
        listed = [tuple(voc_files(root / word)) for word in words]
        files.update({split: next(filter(None, listed))} if any(listed) else {})
    if not files:
        return {}
    names = voc_box_names([path for paths in files.values() for path in paths])
    return {
        split_of_word(word) or word: Source(path=paths[0].parent, open=partial(open_voc_boxes, names, paths))
        for word, paths in files.items()
    }


def _cvat_sets(path: Path) -> dict[str, Source]:
    file = read_cvat(path)
    return {
        split_of_word(subset) or subset: Source(path=path, open=partial(open_cvat, file, images))
        for subset, images in cvat_subsets(file).items()
    }


def _cvat_files(paths: Mapping[str, Path]) -> dict[str, Source]:
    """A file for each split, as datumaro writes them."""
    files = {split: read_cvat(path) for split, path in paths.items()}
    first, *others = files.values()
    for other in others:
        if other.names != first.names:
            raise DataError(other.path, f"has other labels than {first.path.name}; export them together")
    return {
        split: Source(path=file.path, open=partial(open_cvat, file, file.images))
        for split, file in files.items()
    }


def _open_folder(root: Path, pictures: Path, labels: Path, names: tuple[str, ...] | None) -> Listed:
    pairs = pair_up(pictures, labels, names)
    return LabelFolder(pairs, read_scheme(root, pairs))


def _coco_sets(root: Path, kind: str, task: Task) -> dict[str, Source]:
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
    return {split: Source(path=path, open=partial(open_coco, path, task)) for split, (path,) in found.items()}


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

"""Open one split of the data set at `--data PATH`, with the ground truth of the task."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from unimask.config.tasks import Task
from unimask.data.border import Border, check_files, refusal
from unimask.data.drawn import holds_only_boxes, with_boxes
from unimask.data.formats.ade20k import ADE20K
from unimask.data.formats.cityscapes import CITYSCAPES
from unimask.data.formats.coco import COCO
from unimask.data.formats.coco_stuff import COCO_STUFF
from unimask.data.formats.cvat import CVAT
from unimask.data.formats.folders import FOLDERS
from unimask.data.formats.label_studio import LABEL_STUDIO
from unimask.data.formats.labelme import LABELME
from unimask.data.formats.shapes import SHAPES
from unimask.data.formats.shards import SHARDS, shards_in_store
from unimask.data.formats.vistas import VISTAS
from unimask.data.formats.voc import VOC
from unimask.data.formats.voc_xml import VOC_XML
from unimask.data.formats.yolo import YOLO
from unimask.data.items import ItemDataset
from unimask.data.reading import PLAIN, Reading
from unimask.data.sources import SPLITS, Format, Source, Sources, split_of_word
from unimask.data.views import view
from unimask.errors import DataError, OnlyBoxesError, instead_of, nearest, some_of
from unimask.remote import Location, Url, location
from unimask.structures import Dataset

FORMATS: tuple[Format, ...] = (
    SHAPES,
    SHARDS,
    CITYSCAPES,
    ADE20K,
    VISTAS,
    COCO_STUFF,
    VOC,
    CVAT,
    YOLO,
    LABEL_STUDIO,
    LABELME,
    COCO,
    FOLDERS,
    VOC_XML,
)
"""In the order in which they are tried.

Published sets and exports of annotation tools come first, since each has a file or a folder that nothing else
has; XML files of Pascal VOC come last, since all others have more than boxes.
"""

LAYOUTS = "\n".join(["expected one of (val as train)", *(format_.layouts for format_ in reversed(FORMATS))])

TRIED = 20  # images, to tell what a set was labelled for
HELD_OUT = 0.1  # share of the images that a set without a validation split gives to "val"


def open_dataset(
    path: str | Path,
    split: str,
    task: Task,
    background: bool = True,
    *,
    follow_outside: bool = False,
    reading: Reading = PLAIN,
) -> Dataset:
    """Open one split with the ground truth of a task; `LAYOUTS` lists what `path` can be.

    The boxes of detection are those that a COCO JSON of instances states (masks are not needed there) or
    around the shapes that are drawn, to parts of a pixel; of label maps they are the smallest ones around the
    things.

    `split` is "train", "val" or "test", or "all" (a whole file, or the only set of a folder). A folder or
    file without a validation set gives one image in ten to "val" and the others to "train", chosen by a hash
    of the file name: the same ones every time and on every machine, also after images have been added.

    All files lie in the folder of the data: names and links that lead out of it are refused, unless
    `follow_outside` is on. How images are read is decided once for the set, where `reading` leaves it open.

    Raises:
        DataError: no format is recognised, or the split is not there, or the annotations cannot be used, or
            two of their entries have the same image.
    """
    items = open_items(path, split, task, follow_outside=follow_outside, reading=reading)
    return with_truth_of(task, items, path, background=background)


def with_truth_of(task: Task, items: ItemDataset, path: str | Path, *, background: bool) -> Dataset:
    """Return the items of `path` with the ground truth of a task.

    Raises:
        DataError: they have none for it; the message names the path.
    """
    try:
        return view(items, task, background=background)
    except DataError as error:
        raise DataError(path, error.reason) from None


def open_items(
    path: str | Path, split: str, task: Task, *, follow_outside: bool = False, reading: Reading = PLAIN
) -> ItemDataset:
    """Open one split with the ground truth as its files state it; else as `open_dataset`."""
    root = location(path)
    items = _choose(root, split, _sources(root, task), task, follow_outside)
    return replace(items, reading=reading)


def labelled_task(path: str | Path, *, follow_outside: bool = False) -> Task:
    """Return the task that data were labelled for: what the images of their first split hold.

    Panoptic where their categories are things and stuff, instance where they are things only, semantic where
    they are stuff only; detection where there are only boxes: a JSON of COCO without a single mask, or
    nothing but upright rectangles.

    Raises:
        DataError: none of the first images can be read for a task.
    """

    def first_split(task: Task) -> ItemDataset:
        opened = open_splits(path, task, follow_outside=follow_outside)
        items = next(iter(opened.values()))()
        _try_to_read(items)
        return items

    try:
        open_splits(path, "panoptic", follow_outside=follow_outside)
    except DataError:  # there are no masks here
        with suppress(DataError):
            first_split("detection")
            return "detection"
        raise
    try:
        items = first_split("panoptic")
    except OnlyBoxesError:
        first_split("detection")
        return "detection"
    if holds_only_boxes(items):
        return "detection"
    things = set(items.categories.is_thing)
    return "panoptic" if len(things) == 2 else "instance" if True in things else "semantic"


def _try_to_read(items: ItemDataset) -> None:
    """Read the first image that is whole.

    Raises:
        DataError: none of the first `TRIED` is; the error is that of the first.
    """
    failures: list[DataError] = []
    for index in range(min(TRIED, len(items))):
        try:
            items[index]
            return
        except DataError as error:
            failures.append(error)
    for failure in failures[:1]:
        raise failure


def open_splits(
    path: str | Path, task: Task, *, follow_outside: bool = False
) -> dict[str, Callable[[], ItemDataset]]:
    """Return a function that opens each split of the data, by name; "all" is a set without splits.

    The set of a single image is one. Splits of other names than train, val and test come last.

    `follow_outside` is as for `open_dataset`. How the images are read is still to be decided.

    Raises:
        DataError: no format is recognised.
    """
    root = location(path)
    sources = {
        name: replace(source, open=cache(source.open)) for name, source in _sources(root, task).items()
    }
    if len(sources) == 1 and _is_folder(root) and _has_one_image(*sources.values()):
        (own,) = sources  # a single image cannot be split
        return {own or "all": partial(_choose, root, "all", sources, task, follow_outside)}
    names = list(SPLITS) if sources.keys() != {""} or _is_folder(root) else ["all"]
    names += [name for name in sources if name and name not in SPLITS]
    found: dict[str, Callable[[], ItemDataset]] = {}
    for name in names:
        if name in sources or (name in ("train", "val") and ("" in sources or "train" in sources)):
            found[name] = partial(_choose, root, name, sources, task, follow_outside)
    return found


def _has_one_image(source: Source) -> bool:
    try:
        return len(source.open()) == 1
    except DataError:  # reported where the split is opened
        return False


def _is_folder(root: Location) -> bool:
    return root.suffix != ".tar" if isinstance(root, Url) else root.is_dir()


def _sources(root: Location, task: Task) -> Sources:
    if isinstance(root, Url):
        return shards_in_store(root, task)
    found = next((sources for format_ in FORMATS if (sources := format_.find(root, task))), None)
    if found is None:
        raise _not_recognised(root)
    return found


def held_out(image_ids: Sequence[str]) -> tuple[bool, ...]:
    """Return which images are for validation: about one in ten, at least one, by a hash of the id."""
    shares = [hashlib.sha256(name.encode()).digest() for name in image_ids]
    limit = bytes([int(HELD_OUT * 256)]) + bytes(31)
    if min(shares, default=limit) >= limit:
        return tuple(share == min(shares) for share in shares)
    return tuple(share < limit for share in shares)


def _choose(root: Location, split: str, sources: Sources, task: Task, follow_outside: bool) -> ItemDataset:
    """Return the set of the split, or the part of the only set that stands for it."""
    wanted = split_of_word(split) or split
    if wanted in sources and (wanted != "train" or "val" in sources):
        return _opened(root, sources[wanted], task, follow_outside)
    own = [source for source in sources.values() if source.path == root]
    if wanted == "all" and (len(own) == 1 or len(sources) == 1):
        return _opened(root, (own or list(sources.values()))[0], task, follow_outside)
    whole = sources.get("", sources.get("train"))
    if whole is None or wanted not in ("train", "val"):
        names = ", ".join(repr(name) for name in sources if name) or "one set that is not split ('all')"
        raise DataError(str(root), f"has no split {split!r}; {nearest(split, sources)}it has {names}")
    dataset = _opened(root, whole, task, follow_outside)
    is_val = held_out(dataset.image_ids)
    chosen = [index for index, val in enumerate(is_val) if val == (wanted == "val")]
    if not chosen:
        raise DataError(
            str(whole.path),
            "has one image, and no other set is here; add images to it, or a second set for validation",
        )
    return dataset.part(chosen)


def _opened(root: Location, source: Source, task: Task, follow_outside: bool) -> ItemDataset:
    """Open a set, whose files must lie in the data folder and whose entries must have an image each."""
    dataset = source.open() if isinstance(root, Url) else _checked(root, source, follow_outside)
    return with_boxes(dataset) if task == "detection" else dataset


def _checked(root: Path, source: Source, follow_outside: bool) -> ItemDataset:
    border = Border(root)
    own = [source.path] if isinstance(source.path, Path) and source.path != root else []
    if not follow_outside and (outside := border.outside(own)):
        raise refusal(outside, border)
    return check_files(source.open(), border, follow_outside=follow_outside)


def _not_recognised(root: Path) -> DataError:
    if not root.exists():
        return DataError(root, f"no such file or folder{instead_of(str(root))}", LAYOUTS)
    if not root.is_dir():
        return DataError(root, "is a file, but no JSON and no XML of CVAT", LAYOUTS)
    names = sorted(
        entry.name + "/" * entry.is_dir() for entry in root.iterdir() if not entry.name.startswith(".")
    )
    return DataError(root, f"found {some_of(names, 5) if names else 'an empty folder'}", LAYOUTS)

"""Folders of images and label maps: a class per pixel, or an instance number per pixel."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy import ndarray

from unimask.config.images import Task
from unimask.data.category_tables import color_or_default, default_color, with_background
from unimask.data.formats.coco_file import (
    Record,
    load_json,
    records,
    unique,
    whole,
)
from unimask.data.items import ItemDataset
from unimask.data.naming import files_below
from unimask.data.numbered import (
    LabelPair,
    NumberScheme,
    check_sizes,
    image_of_pair,
    numbered_dataset,
    numbers_of_colors,
    pack_color,
    select_numbers,
    size_of_labels,
)
from unimask.data.pillow import open_image
from unimask.data.read import IMAGE_SUFFIXES, read_labels
from unimask.data.reading import PLAIN, Reading
from unimask.data.sources import SPLITS, Format, Source, Sources, split_of_word
from unimask.errors import DataError, some_of
from unimask.ops.id_maps import MOST_SEGMENTS
from unimask.structures import Categories, Sample, Segments, Size

CLASSES_FILE = "classes.json"
EXAMPLE = '{"kind": "semantic", "classes": [{"id": 0, "name": "road"}, ...], "ignore_label": 255}'

VOID_COLOR = (224, 224, 192)  # of the border of objects in Pascal VOC
_LARGEST_NUMBER = 2**24 - 1  # of an instance; numbers are looked up in a table
_LABEL_ENDINGS = ("", "_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_L")


@dataclass(frozen=True, kw_only=True)
class LabelScheme:
    """What the numbers in label maps mean.

    "semantic": a number is a class (`categories.file_ids`), and classes are stuff; label maps may have the
    colours of the classes instead. "instances": a number
    other than 0 is one object of the only class; 0 is background. Pixels with an ignored number are void.
    """

    kind: Literal["semantic", "instances"]
    categories: Categories
    ignored: tuple[int, ...]
    numbers_of_colors: Mapping[int, int]  # R + 256 G + 65536 B -> number, of label maps in colours


def label_dataset(pairs: Sequence[LabelPair], scheme: LabelScheme) -> ItemDataset:
    """A sample for each pair of image and label map.

    Where an instance scheme ignores a number, the background is a stuff category of its own, so that ignored
    pixels stay void when it is asked for.
    """
    if scheme.kind == "semantic":
        numbers = NumberScheme(
            categories=scheme.categories,
            classes=scheme.categories.file_ids,
            ignored=scheme.ignored,
            plain=0,
            divisor=1,
            way_out=f"list them in {CLASSES_FILE}",
        )
        read_numbers = partial(read_classes, colors=dict(scheme.numbers_of_colors))
        return numbered_dataset(pairs, numbers, read_numbers)
    categories = with_background(scheme.categories) if scheme.ignored else scheme.categories
    items = tuple(_InstanceItem(pair=pair, ignored=scheme.ignored) for pair in pairs)
    return ItemDataset(categories=categories, items=items)


def read_classes(path: Path, colors: Mapping[int, int]) -> ndarray:
    """Read the numbers of a label map, or those of its colours.

    Raises:
        DataError: as `read_labels`, or a colour is not in the table.
    """
    image = open_image(path, rotate=False)
    if image.mode not in ("RGB", "RGBA"):
        return read_labels(path)
    if not colors:
        raise DataError(
            path,
            f"is a label map of colours (mode {image.mode}), and nothing says what they mean; give each "
            f'class of {CLASSES_FILE} its "color": [red, green, blue], or save one number per pixel '
            "(8- or 16-bit grey, or a palette)",
        )
    return numbers_of_colors(path, image, colors, CLASSES_FILE)


@dataclass(frozen=True, kw_only=True)
class _InstanceItem:
    pair: LabelPair
    ignored: tuple[int, ...]

    @property
    def image_id(self) -> str:
        return self.pair.image.stem

    @property
    def files(self) -> tuple[Path, ...]:
        return self.pair.image, self.pair.labels

    def stated_size(self) -> tuple[Size, ...]:
        return size_of_labels(self.pair)

    def read(self, reading: Reading = PLAIN) -> Sample:
        check_sizes(self.pair)
        numbers = read_labels(self.pair.labels)
        image = image_of_pair(self.pair, numbers.shape, reading)
        return Sample(image=image, truth=self._instances(numbers), image_id=self.image_id)

    def _instances(self, numbers: ndarray) -> Segments:
        path, present = self.pair.labels, np.unique(numbers)
        if present[0] < 0 or present[-1] > _LARGEST_NUMBER:
            wrong = present[0] if present[0] < 0 else present[-1]
            raise DataError(path, f"has the label {wrong}; instance numbers go from 0 to {_LARGEST_NUMBER}")
        kept = [number for number in present.tolist() if number != 0 and number not in self.ignored]
        if len(kept) >= MOST_SEGMENTS:
            raise DataError(path, f"has {len(kept)} instances; at most {MOST_SEGMENTS - 1} are possible")
        labels = [0] * len(kept)
        if self.ignored and 0 in present:
            kept, labels = [*kept, 0], [*labels, 1]
        return select_numbers(numbers, kept, labels, [False] * len(labels))


def pair_up(images: Path, labels: Path, names: Sequence[str] | None = None) -> list[LabelPair]:
    """Pair every image of a folder with the label map of the same name; `names` chooses some.

    Label maps may end in `_mask`, `_label`, `_gt`, `_seg` or `_L` after the image's name. Images in
    sub-folders are paired with label maps in sub-folders of the same name; those without one are left out.
    `names` are without suffix, and with the sub-folder.

    Raises:
        DataError: an image has no labels, labels have no image, or two files have one name.
    """
    by_name = _by_name(images, _tree(images))
    maps = _by_name(labels, _tree(labels, maps=True))
    wanted = list(by_name) if names is None else list(dict.fromkeys(names))
    absent = [name for name in wanted if name not in by_name]
    if absent:
        raise DataError(images, f"{len(absent)} images of the split are missing, the first is {absent[0]!r}")
    pairs, unlabelled, used = [], [], set()
    for name in wanted:
        found = [name + ending for ending in _LABEL_ENDINGS if name + ending in maps]
        if not found:
            unlabelled.append(name)
            continue
        used.add(found[0])
        pairs.append(LabelPair(image=by_name[name], labels=maps[found[0]]))
    missing = [name for name in unlabelled if names is not None or "/" not in name or not pairs]
    if missing:
        jpegs = any((labels / f"{missing[0]}{suffix}").is_file() for suffix in _LOSSY)
        raise DataError(
            labels,
            f"{len(missing)} of {len(wanted)} images in {images} have no label map, the first is "
            f"{missing[0]!r}; " + (_NO_JPEG if jpegs else "label them or move them out"),
        )
    orphans = [name for name in maps if name not in used] if names is None else []
    if orphans:
        raise DataError(
            images,
            f"{len(orphans)} label maps in {labels} have no image here, the first is {orphans[0]!r}; "
            "add the images or move the labels out",
        )
    return pairs


def left_out(images: Path, labels: Path, pairs: Sequence[LabelPair]) -> tuple[str, ...]:
    """Say what the two folders hold beside the pairs: images in sub-folders, and files that are no images."""
    used = {file for pair in pairs for file in (pair.image, pair.labels)}
    found = []
    unpaired = [path for path in _tree(images) if path not in used and path.parent != images]
    if unpaired:
        found.append(
            f"{len(unpaired)} images in sub-folders of {images} have no label map in a sub-folder of the "
            f"same name and are left out, the first is {unpaired[0].relative_to(images)}"
        )
    for folder, maps in ((images, False), (labels, True)):
        readable = set(_tree(folder, maps=maps))
        others = [path for path in files_below(folder) if path not in readable]
        if others:
            kind = "label map" if maps else "image"
            found.append(
                f"{len(others)} files in {folder} are no {kind} and are left out, the first is "
                f"{others[0].relative_to(folder)}"
            )
    return tuple(found)


_LOSSY = (".jpg", ".jpeg", ".jfif", ".webp", ".avif")  # suffixes of files whose numbers may have changed
_NO_JPEG = "JPEG and WebP change the numbers of label maps, so they are not read; save them as PNG"


def _tree(folder: Path, *, maps: bool = False) -> list[Path]:
    """The images in a folder and its sub-folders, or the label maps."""
    suffixes = IMAGE_SUFFIXES - set(_LOSSY) if maps else IMAGE_SUFFIXES
    return [path for path in files_below(folder) if path.suffix.lower() in suffixes]


def _by_name(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """The files by their name without suffix, with sub-folder, in composed Unicode (NFC)."""
    found: dict[str, Path] = {}
    for path in files:
        name = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        if name in found:
            raise DataError(
                folder,
                f"{found[name].name} and {path.name} have one name, so it is not clear whose labels are "
                "meant; move one out",
            )
        found[name] = path
    return found


def read_splits(root: Path) -> dict[str, list[str]]:
    """Read the image names (without suffix) of each split from `splits.json`; empty without the file.

    Raises:
        DataError: the file does not hold lists of names.
    """
    path = root / "splits.json"
    if not path.exists():
        return {}
    content = load_json(path)
    splits = {}
    for split, names in content.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(path, f"{split!r} is no list of image names")
        splits[split] = [unicodedata.normalize("NFC", _without_suffix(name)) for name in names]
    return splits


def _without_suffix(name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else str(path)


def read_scheme(folder: Path, pairs: Sequence[LabelPair]) -> LabelScheme:
    """Read what labels mean from `classes.json` in the folder, else guess it from some label maps.

    `classes.json` holds an object: "classes" is a list of {"id": number, "name": text, "color": [r, g, b]}
    (the color may be left out), "kind" is "semantic" (the default) or "instances" (then there is one class,
    and its id does not matter), "ignore_label" is a number or a list of numbers (255 by default for
    "semantic", where no class has it).

    Without the file: 16-bit labels are instance numbers of one class "object"; labels with no numbers but 0
    and 255, or 0 and 1, are the classes "background" and "foreground". Anything else needs the file.

    Raises:
        DataError: the file cannot be used, or is needed.
    """
    path = folder / CLASSES_FILE
    if not path.exists():
        return _guess_scheme(path, pairs)
    scheme = _scheme_from_file(path)
    is_binary = scheme.kind == "semantic" and set(scheme.categories.file_ids) == {0, 1}
    if is_binary and "ignore_label" not in load_json(path):
        present = _numbers_in(pairs)
        if 255 in present and 1 not in present:
            raise DataError(
                path,
                f"numbers its classes 0 and 1, but the label maps hold {some_of(sorted(present))}; give the "
                'class of 255 the "id" 255, or save its pixels as 1',
            )
    return scheme


def _numbers_in(pairs: Sequence[LabelPair]) -> set[int]:
    """The numbers in some label maps of one channel, spread over all."""
    chosen = (pair.labels for pair in pairs[:: max(1, len(pairs) // 20)])
    numbers = [path for path in chosen if open_image(path, rotate=False).mode not in ("RGB", "RGBA")]
    return set().union(*(np.unique(read_labels(path)).tolist() for path in numbers))


def _scheme_from_file(path: Path) -> LabelScheme:
    content = load_json(path)
    entries = records(path, content, "classes")
    kind = content.get("kind", "semantic")
    if kind not in ("semantic", "instances"):
        raise DataError(path, f"kind is {kind!r}; expected 'semantic' or 'instances'")
    if kind == "instances" and len(entries) != 1:
        raise DataError(
            path, f"has {len(entries)} classes; label maps of instances hold one class, use COCO for more"
        )
    ids = tuple(whole(path, entry, "id", f"class {entry.get('name')!r}") for entry in entries)
    unique(path, ids, "class id")
    categories = Categories(
        names=tuple(_name(path, entry) for entry in entries),
        is_thing=(kind == "instances",) * len(entries),
        file_ids=ids,
        colors=tuple(color_or_default(entry.get("color"), index) for index, entry in enumerate(entries)),
    )
    if len(set(categories.names)) < len(entries):
        raise DataError(path, "two classes have the same name")
    default = [255] if kind == "semantic" and 255 not in ids else []
    given = content.get("ignore_label", default)
    listed = given if isinstance(given, list) else [given]
    ignored = tuple(number for number in listed if isinstance(number, int) and number not in ids)
    if len(ignored) < len(listed):
        raise DataError(path, f"ignore_label is {given!r}; expected numbers that are no class")
    return LabelScheme(
        kind="instances" if kind == "instances" else "semantic",
        categories=categories,
        ignored=ignored,
        numbers_of_colors=_numbers_of_colors(path, entries, ids, ignored),
    )


def _numbers_of_colors(
    path: Path, entries: Sequence[Record], ids: Sequence[int], ignored: Sequence[int]
) -> dict[int, int]:
    """The colours that the file gives to classes, and that of the border of objects in VOC."""
    numbers = {pack_color(VOID_COLOR): ignored[0]} if ignored else {}
    stated = [color_or_default(entry["color"], 0) for entry in entries if "color" in entry]
    if len(stated) < len(entries):
        return {}
    if len(set(stated)) < len(stated):
        raise DataError(path, "two classes have the same color")
    return {**numbers, **{pack_color(color): number for color, number in zip(stated, ids)}}


def _name(path: Path, entry: Record) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise DataError(path, f"class {entry.get('id')} has the name {name!r}; expected text")
    return name


def _guess_scheme(path: Path, pairs: Sequence[LabelPair]) -> LabelScheme:
    chosen = pairs[:: max(1, len(pairs) // 20)]
    if open_image(chosen[0].labels, rotate=False).mode.startswith("I"):
        return LabelScheme(
            kind="instances",
            categories=_plain_categories(("object",), (1,), thing=True),
            ignored=(),
            numbers_of_colors={},
        )
    if open_image(chosen[0].labels, rotate=False).mode in ("RGB", "RGBA"):
        read_classes(chosen[0].labels, {})  # says what is missing
    present = sorted(_numbers_in(pairs))
    if set(present) <= {0, 1} or set(present) <= {0, 255}:
        categories = _plain_categories(("background", "foreground"), (0, max(1, present[-1])), thing=False)
        return LabelScheme(kind="semantic", categories=categories, ignored=(), numbers_of_colors={})
    raise DataError(
        path,
        f"no such file, and the labels (8-bit numbers {some_of(present, 12)}) do not say what they mean; "
        f"add it, for example {EXAMPLE}, or of kind 'instances' where the numbers count objects of a class",
    )


def _plain_categories(names: tuple[str, ...], ids: tuple[int, ...], *, thing: bool) -> Categories:
    colors = tuple(default_color(index) for index in range(len(names)))
    return Categories(names=names, is_thing=(thing,) * len(names), file_ids=ids, colors=colors)


IMAGE_FOLDERS = ("images", "image", "img", "imgs", "pictures", "JPEGImages")
LABEL_FOLDERS = (
    *("labels", "label", "masks", "mask", "annotations", "annot"),
    *("semantic", "instances", "gt", "SegmentationClass"),
)


def find_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Find the pairs of folders (images, labels) below a folder, by split; "" is a set that is not split.

    For a split called `train`: `images/train` with `labels/train`, `train/images` with `train/labels`, or
    `train` with `train_labels` or `trainannot`; without splits `images` with `labels`.
    """
    found = {}
    for split, names in SPLITS.items():
        for images, labels in _candidates(root, names):
            if _holds_both(images, labels):
                found[split] = (images, labels)
                break
    if not found:
        for images, labels in ((root / p, root / m) for p in IMAGE_FOLDERS for m in LABEL_FOLDERS):
            if _holds_both(images, labels):
                return {"": (images, labels)}
    return found


def _candidates(root: Path, names: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    for name in names:
        for labels in LABEL_FOLDERS:
            for images in IMAGE_FOLDERS:
                yield root / images / name, root / labels / name
                yield root / name / images, root / name / labels
            yield root / name, root / f"{name}_{labels}"
            yield root / name, root / f"{name}{labels}"


def _holds_both(images: Path, labels: Path) -> bool:
    if not (images.is_dir() and labels.is_dir() and _tree(images)):
        return False
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in files_below(labels))


def _find(path: Path, task: Task) -> Sources:
    folders = find_folders(path) if path.is_dir() else {}
    splits = read_splits(path) if "" in folders else {}
    if splits:
        images, labels = folders[""]
        return {
            split_of_word(word) or word: Source(
                path=path, open=partial(_open, path, images, labels, tuple(names))
            )
            for word, names in splits.items()
        }
    return {
        split: Source(path=labels, open=partial(_open, path, images, labels))
        for split, (images, labels) in folders.items()
    }


def _open(root: Path, images: Path, labels: Path, names: tuple[str, ...] | None = None) -> ItemDataset:
    if not _tree(labels, maps=True):
        raise DataError(labels, f"has no label maps that can be read; {_NO_JPEG}")
    pairs = pair_up(images, labels, names)
    dataset = label_dataset(pairs, read_scheme(root, pairs))
    return replace(dataset, left_out=() if names is not None else left_out(images, labels, pairs))


FOLDERS = Format(
    layouts="""\
  images/train/, images/val/ with labels/train/, labels/val/ (label maps), and classes.json
  train/images/ with train/labels/, or train/ with train_labels/ (and so on for val), and classes.json
  images/ with labels/ (one set), and classes.json, and splits.json if it is split""",
    find=_find,
)

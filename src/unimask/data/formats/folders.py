"""Folders of images and label maps: a class per pixel, or an instance number per pixel."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy import ndarray

from unimask.config.tasks import Task
from unimask.data.category_tables import with_background
from unimask.data.formats.folders_pairs import NO_JPEG, left_out, pair_up, read_splits, readable_files
from unimask.data.formats.folders_scheme import CLASSES_FILE, LabelScheme, read_classes, read_scheme
from unimask.data.items import ItemDataset
from unimask.data.naming import files_below
from unimask.data.numbered import (
    LabelPair,
    NumberScheme,
    check_sizes,
    image_of_pair,
    numbered_dataset,
    select_numbers,
    size_of_labels,
)
from unimask.data.read import IMAGE_SUFFIXES, read_labels
from unimask.data.reading import PLAIN, Reading
from unimask.data.sources import SPLITS, Format, Source, Sources, split_of_word
from unimask.errors import DataError
from unimask.ops.id_maps import MOST_SEGMENTS
from unimask.structures import Sample, Segments, Size

_LARGEST_NUMBER = 2**24 - 1  # of an instance; numbers are looked up in a table


def label_dataset(pairs: Sequence[LabelPair], scheme: LabelScheme) -> ItemDataset:
    """Return a sample for each pair of image and label map.

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
        read_numbers = partial(
            read_classes, colors=dict(scheme.numbers_of_colors), by_palette=scheme.by_palette
        )
        return numbered_dataset(pairs, numbers, read_numbers)
    categories = with_background(scheme.categories) if scheme.ignored else scheme.categories
    items = tuple(_InstanceItem(pair=pair, ignored=scheme.ignored) for pair in pairs)
    return ItemDataset(categories=categories, items=items)


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
    if not (images.is_dir() and labels.is_dir() and readable_files(images)):
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
    if not readable_files(labels, maps=True):
        raise DataError(labels, f"has no label maps that can be read; {NO_JPEG}")
    pairs = pair_up(images, labels, names)
    scheme = read_scheme(root, pairs)
    guessed = (f"without {CLASSES_FILE}, {scheme.guessed}",) * bool(scheme.guessed)
    said = (*guessed, *_one_number_each(pairs, scheme))
    beside = () if names is not None else left_out(images, labels, pairs)
    return replace(label_dataset(pairs, scheme), left_out=(*said, *beside))


def _one_number_each(pairs: Sequence[LabelPair], scheme: LabelScheme) -> tuple[str, ...]:
    """Say where maps of objects look like masks of a class: one number each, in places that do not touch."""
    if scheme.kind != "instances":
        return ()
    apart = 0
    for pair in pairs[:: max(1, len(pairs) // 20)]:
        try:
            numbers = read_labels(pair.labels)
        except DataError:  # said where it is read
            continue
        objects = set(np.unique(numbers).tolist()) - {0, *scheme.ignored}
        if len(objects) > 1:
            return ()
        apart += bool(objects) and _has_a_gap(numbers == objects.pop())
    said = (
        "no label map that was looked at numbers more than one object, though its pixels lie apart; masks of"
    )
    return (f"{said} a class are of kind 'semantic' in {CLASSES_FILE}",) * bool(apart)


def _has_a_gap(mask: ndarray) -> bool:
    """Return whether rows or columns without a pixel lie between pixels of a mask."""
    lines = [np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1)]
    return any(line.size and line[-1] - line[0] >= line.size for line in lines)


FOLDERS = Format(
    layouts="""\
  images/train/, labels/train/ of label maps, classes.json
  train/images/, train/labels/, or train/, train_labels/, and classes.json
  images/, labels/, classes.json (one set, which splits.json may split)""",
    find=_find,
)

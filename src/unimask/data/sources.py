"""The annotated sets that a format finds at a path, by split; each is opened when it is chosen."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unimask.config.tasks import Task
from unimask.data.items import ItemDataset
from unimask.errors import DataError, some_of
from unimask.remote import Location

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """One set of annotated images; `open` reads its annotations, not its images."""

    path: Location
    open: Callable[[], ItemDataset]


Sources = dict[str, Source]
"""The sets at a path by split ("train", "val", "test"); "" is one that is not split."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to store annotations.

    `find` returns the sets at a path with the annotations that serve a task, none where the path is of
    another format. It raises DataError where the path is surely of this format, but broken or ambiguous.
    """

    layouts: str  # descriptions for users, a line each
    find: Callable[[Path, Task], Sources]


def split_of_word(word: str) -> str:
    """Return the split that a word means, "" if none."""
    return next((split for split, words in SPLITS.items() if word.lower() in words), "")


def of_other_names(splits: Iterable[str]) -> tuple[str, ...]:
    """Say which splits are neither train, val nor test, so that only who names them reads them."""
    others = [name for name in splits if name not in (*SPLITS, "all")]
    said = f"{some_of(others)}: splits of such names are read by `evaluate --split NAME` only; training needs"
    return (f"{said} 'train' and 'val', so rename them in the data",) * bool(others)


def refused(path: Location, reason: str) -> Source:
    """Return a set that exists and cannot serve the task: opening it raises a DataError."""
    return Source(path=path, open=partial(_refuse, path, reason))


def _refuse(path: Location, reason: str) -> ItemDataset:
    raise DataError(str(path), reason)

"""Sets of annotated pictures that were found but not opened, by split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from unimask.errors import DataError
from unimask.structures import Dataset

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@runtime_checkable
class Listed(Dataset, Protocol):
    """A data set that knows the ids of its samples without reading them."""

    @property
    def image_ids(self) -> tuple[str, ...]:
        """In the order of the samples."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One set of annotated images; `open` reads its annotations, not its images."""

    path: Path
    open: Callable[[], Listed]


def split_of_word(word: str) -> str:
    """The split that a word means, "" if none."""
    return next((split for split, words in SPLITS.items() if word.lower() in words), "")


def refused(path: Path, reason: str) -> Source:
    """A set that is there and cannot be used for what is wanted: opening it raises DataError."""
    return Source(path=path, open=partial(_refuse, path, reason))


def _refuse(path: Path, reason: str) -> Listed:
    raise DataError(path, reason)

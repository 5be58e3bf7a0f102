"""Sets of annotated pictures that were found but not opened, by split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

from unimask.data.box_views import Listed
from unimask.errors import DataError
from unimask.structures import BoxDataset

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@runtime_checkable
class ListedBoxes(BoxDataset, Protocol):
    """A data set of boxes that knows the ids of its samples without reading them."""

    @property
    def image_ids(self) -> tuple[str, ...]:
        """In the order of the samples."""


Found = TypeVar("Found", bound=Listed | ListedBoxes)


@dataclass(frozen=True, kw_only=True)
class Source(Generic[Found]):
    """One set of annotated pictures; `open` reads its annotations, not its pictures."""

    path: Path
    open: Callable[[], Found]


def split_of_word(word: str) -> str:
    """The split that a word means, "" if none."""
    return next((split for split, words in SPLITS.items() if word.lower() in words), "")


def refused(path: Path, reason: str) -> Source[Listed]:
    """A set that is there and cannot be used for what is wanted: opening it raises DataError."""
    return Source(path=path, open=partial(_refuse, path, reason))


def _refuse(path: Path, reason: str) -> Listed:
    raise DataError(path, reason)

"""Data sets as lists of annotated images, whose files are read when a sample is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from unimask.structures import Categories, Sample


@runtime_checkable  # the tests check argument types at run time
class Item(Protocol):
    """One annotated image; its files are not read yet."""

    @property
    def image_id(self) -> str:
        """The id of its sample: the stem of the image's file."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read for it: the image, and the files of ground truth that are its own."""

    def read(self) -> Sample:
        """Read the image and its ground truth.

        Raises:
            DataError: a file cannot be used.
        """


@dataclass(frozen=True, kw_only=True)
class ItemDataset:
    """The data set that every format opens."""

    categories: Categories
    items: tuple[Item, ...]
    left_out: tuple[str, ...] = ()  # what lies beside them and is not read: a sentence each

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The id of every sample, without reading it."""
        return tuple(item.image_id for item in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        return self.items[index].read()

    def part(self, indices: Sequence[int]) -> "ItemDataset":
        """Some of the samples, in the order of `indices`."""
        items = tuple(self.items[index] for index in indices)
        return ItemDataset(categories=self.categories, items=items, left_out=self.left_out)

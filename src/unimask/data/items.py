"""Data sets as lists of annotated images, whose files are read when a sample is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from unimask.data.decisions import Decided, decide_for_set
from unimask.data.reading import PLAIN, Reading, settled
from unimask.structures import Categories, Sample, Size


@runtime_checkable  # the tests check argument types at run time
class Item(Protocol):
    """One annotated image; its files are not read yet."""

    @property
    def image_id(self) -> str:
        """The id of its sample: the stem of the image's file."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read for it: the image, and those of its ground truth alone."""

    def stated_size(self) -> tuple[Size, ...]:
        """(height, width) that its ground truth is of, as told without reading pixels; none if unknown."""

    def read(self, reading: Reading = PLAIN) -> Sample:
        """Read the image as `reading` says, and its ground truth.

        Raises:
            DataError: a file cannot be used.
        """


@dataclass(frozen=True, kw_only=True)
class ItemDataset:
    """The data set that every format opens."""

    categories: Categories
    items: tuple[Item, ...]
    left_out: tuple[str, ...] = ()  # sentences about files beside them that are not read
    reading: Reading = PLAIN  # how its images are read, as far as the user says
    known: Reading = PLAIN  # how its images are read, as far as that was decided when they were written
    whole: tuple[Item, ...] = ()  # what this is a part of: all of it decides how images are read

    @cached_property
    def decided(self) -> Decided:
        """How all of its images are read; files are examined when this is first needed.

        Raises:
            DataError: as `decide_for_set`.
        """
        having = [(item.files[0], item) for item in self.whole or self.items if item.files]
        paths = [path for path, _ in having]
        reading = settled(self.reading, self.known)
        return decide_for_set(paths, lambda index: having[index][1].stated_size(), reading)

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The id of every sample, without reading it."""
        return tuple(item.image_id for item in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        return self.items[index].read(self.decided.reading)

    def part(self, indices: Sequence[int]) -> "ItemDataset":
        """Return the data set of some samples, in the order of `indices`."""
        items = tuple(self.items[index] for index in indices)
        return replace(self, items=items, whole=self.whole or self.items)

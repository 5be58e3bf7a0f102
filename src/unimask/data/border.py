"""The border of a data folder: a set reads files inside it only, unless its user allows others."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unimask.data.items import ItemDataset
from unimask.data.sources import SPLITS
from unimask.errors import DataError

_WORDS = tuple(word for words in SPLITS.values() for word in words)
_INNER = frozenset(
    {"annotations", "annotation", "labels", "json", "gtfine", "leftimg8bit", "stuffthingmaps", "panoptic"}
    | {"v1.2", "v2.0", "instances"}
)
"""Folders of a set: if the data is one of them, the set is the folder around it."""
_BESIDE = ("images", "JPEGImages", "img", "imgs", "data", *_WORDS, *(f"{word}2017" for word in _WORDS))
"""Folders in which images are looked for beside the folder of an annotation file."""


class Border:
    """The folders that the files of a set may lie in."""

    def __init__(self, root: Path) -> None:
        folder = root if root.is_dir() else root.parent
        folder = Path(os.path.abspath(folder))
        inner = _INNER if root.is_dir() else _INNER | set(_WORDS)
        while folder.name.lower() in inner:
            folder, inner = folder.parent, _INNER | set(_WORDS)
        parent = os.path.realpath(folder.parent)
        self.folder = folder
        inside = [os.path.realpath(folder), *(os.path.join(parent, name) for name in _BESIDE)]
        self._inside = tuple(place.rstrip(os.sep) + os.sep for place in inside)
        self._real: dict[str, str] = {}

    def real(self, path: Path) -> str:
        """Return the path without links; folders are resolved once."""
        folder, name = os.path.split(os.path.normpath(path))
        if os.path.islink(path):
            return os.path.realpath(path)
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder)
        return os.path.join(self._real[folder], name)

    def outside(self, paths: Sequence[Path]) -> list[Path]:
        """Return the paths that lead out of the folders."""
        return [path for path in paths if not (self.real(path) + os.sep).startswith(self._inside)]


def check_files(dataset: ItemDataset, border: Border, *, follow_outside: bool) -> ItemDataset:
    """Return the set with a sentence on files outside of the border, where `follow_outside` allows them.

    Raises:
        DataError: two samples have the same image, or a file lies outside and that is not allowed.
    """
    images: set[str] = set()
    for item in dataset.items:
        for image in item.files[:1]:
            real = border.real(image)
            if real in images:
                raise DataError(
                    image,
                    "two entries of the annotations lead to this image; give each its own, in the sub-folder "
                    "that its name states",
                )
            images.add(real)
    outside = border.outside([file for item in dataset.items for file in item.files])
    if not outside:
        return dataset
    if not follow_outside:
        raise refusal(outside, border)
    sentence = f"{len(outside)} files lie outside of the data folder and are read, the first is {outside[0]}"
    return replace(dataset, left_out=(*dataset.left_out, sentence))


def refusal(outside: Sequence[Path], border: Border) -> DataError:
    """Return the error for files outside of the border."""
    return DataError(
        border.folder,
        f"names or links lead out of this folder, the first of {len(outside)} to {border.real(outside[0])}; "
        "copy the files into it, or allow it with --follow-outside (in Python: follow_outside=True)",
    )

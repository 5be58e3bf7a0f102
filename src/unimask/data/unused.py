"""Unused files beside those of a data set: images without labels, labels without image."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from unimask.data.items import ItemDataset
from unimask.data.naming import files_below
from unimask.data.read import IMAGE_SUFFIXES
from unimask.errors import some_of
from unimask.files import first_bytes

_LABELS = (".txt", ".json", ".xml")  # label maps come in several kinds, of which one is read
_NAMES = ("classes.txt", "classes.json", "labelmap.txt", "notes.json")  # of the whole set, beside the labels


def unused_files(datasets: Sequence[ItemDataset]) -> tuple[str, ...]:
    """Say which files lie beside the images of a data set, or beside their labels, and are in no split.

    `datasets` are all of the splits. Only folders that hold used files are listed, and those in them.
    """
    images = {path for dataset in datasets for item in dataset.items for path in item.files[:1]}
    labels = {path for dataset in datasets for item in dataset.items for path in item.files[1:]}
    used = set(_real({*images, *labels}))
    found = []
    for kind, paths, others, suffixes in (
        ("images", images, labels, IMAGE_SUFFIXES),
        ("label files", labels, images, {path.suffix.lower() for path in labels} & set(_LABELS)),
    ):
        folders = {path.parent for path in paths}
        foreign = {path.parent for path in others} - folders
        for top in sorted(folder for folder in folders if folders.isdisjoint(folder.parents)):
            below = _files_of(top, suffixes, foreign) if suffixes else []
            unused = [path for path, real in zip(below, _real(below), strict=True) if real not in used]
            if unused:
                found.append(
                    f"{len(unused)} {kind} in {top} belong to no split and are left out: "
                    f"{some_of((path.relative_to(top).as_posix() for path in unused), 3)}"
                )
    return tuple(found)


def _files_of(top: Path, suffixes: Iterable[str], foreign: set[Path]) -> list[Path]:
    """Return the files with one of some suffixes in a folder and those in it, but for `foreign` folders.

    JSON files further down are those of LabelMe only, since runs and results are JSON, too.
    """
    return [
        path
        for path in files_below(top)
        if path.suffix.lower() in suffixes
        and path.name not in _NAMES
        and path.parent not in foreign
        and (
            path.parent == top or path.suffix.lower() != ".json" or b'"shapes"' in first_bytes(path, 1 << 16)
        )
    ]


def _real(paths: Iterable[Path]) -> list[str]:
    """Return the paths with the links of their folders resolved."""
    paths = list(paths)
    folders = {folder: os.path.realpath(folder) for folder in {path.parent for path in paths}}
    return [os.path.join(folders[path.parent], path.name) for path in paths]

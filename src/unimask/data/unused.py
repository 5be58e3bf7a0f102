"""Unused files beside those of a data set: images without labels, labels without image."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from unimask.data.items import ItemDataset
from unimask.data.read import IMAGE_SUFFIXES
from unimask.errors import some_of

_LABELS = (".txt", ".json", ".xml")  # label maps come in several kinds, of which one is read
_NAMES = ("classes.txt", "classes.json", "labelmap.txt", "notes.json")  # of the whole set, beside the labels


def unused_files(datasets: Sequence[ItemDataset]) -> tuple[str, ...]:
    """Say which files lie beside the images of a data set, or beside their labels, and are in no split.

    `datasets` are all of the splits. Only folders that hold used files are listed.
    """
    images = {path for dataset in datasets for item in dataset.items for path in item.files[:1]}
    labels = {path for dataset in datasets for item in dataset.items for path in item.files[1:]}
    used = _real({*images, *labels})
    found = []
    for kind, paths, suffixes in (
        ("images", images, IMAGE_SUFFIXES),
        ("label files", labels, {path.suffix.lower() for path in labels} & set(_LABELS)),
    ):
        for folder in sorted({path.parent for path in paths}):
            others = [path for path in _files_in(folder, suffixes) if str(path) not in used]
            if others:
                found.append(
                    f"{len(others)} {kind} in {folder} belong to no split and are left out: "
                    f"{some_of((path.name for path in others), 3)}"
                )
    return tuple(found)


def _files_in(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Return the files of a folder with one of some suffixes, without hidden ones, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    except OSError:
        return []
    real = Path(os.path.realpath(folder))
    kept = [name for name in names if Path(name).suffix.lower() in suffixes and name not in _NAMES]
    return [real / name for name in sorted(kept)]


def _real(paths: Iterable[Path]) -> set[str]:
    """Return the paths with the links of their folders resolved."""
    paths = list(paths)
    folders = {folder: os.path.realpath(folder) for folder in {path.parent for path in paths}}
    return {os.path.join(folders[path.parent], path.name) for path in paths}

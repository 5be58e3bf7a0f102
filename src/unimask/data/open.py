"""`--data PATH`: the data set that lies there, the part of it that is asked for, as truth of the task."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from unimask.config.images import Task
from unimask.data.formats.layouts import LAYOUTS, sets_around, sets_in
from unimask.data.formats.shapes import ShapesDataset
from unimask.data.sources import Listed, Source, split_of_word
from unimask.data.views import view
from unimask.errors import DataError
from unimask.structures import Categories, Dataset, Sample

HELD_OUT = 0.1  # share of the pictures that a set without a validation split gives to "val"


def open_dataset(path: str | Path, split: str, task: Task, background: bool = True) -> Dataset:
    """The samples of one split with the truth of a task; `layouts.LAYOUTS` lists what `path` can be.

    The boxes of detection are those that a COCO JSON of instances states (masks are not needed there); of all
    other layouts they are the smallest ones around the things.

    `split` is "train", "val" or "test", or "all" (a whole file, or the only set of a folder). A folder or
    file without a validation set gives one picture in ten to "val" and the others to "train", chosen by a
    hash of the file name: the same ones every time and on every machine, also after pictures have been added.

    Raises:
        DataError: no layout is recognised, or the split is not there, or the annotations cannot be used.
    """
    if re.match("shapes(:|$)", str(path)) and not Path(path).exists():
        return view(_shapes(str(path), split), task, background=background)
    found = _open(Path(path), split, task)
    try:
        return view(found, task, background=background)
    except DataError as error:
        raise DataError(path, error.reason) from None


def _open(root: Path, split: str, task: Task) -> Dataset:
    if not root.exists():
        raise DataError(root, "no such file or folder; " + LAYOUTS)
    sets = sets_in(root, task) if root.is_dir() else sets_around(root, task)
    return _choose(root, split, sets)


def held_out(image_ids: Sequence[str]) -> tuple[bool, ...]:
    """Which pictures are for validation: about one in ten, at least one, by a hash of the id."""
    shares = [hashlib.sha256(name.encode()).digest() for name in image_ids]
    limit = bytes([int(HELD_OUT * 256)]) + bytes(31)
    if min(shares, default=limit) >= limit:
        return tuple(share == min(shares) for share in shares)
    return tuple(share < limit for share in shares)


def _choose(root: Path, split: str, sets: Mapping[str, Source]) -> Dataset:
    """The set of the split, or the part of the only set that stands for it."""
    wanted = split_of_word(split) or split
    if wanted in sets and (wanted != "train" or "val" in sets):
        return sets[wanted].open()
    own = [source for source in sets.values() if source.path == root]
    if wanted == "all" and (len(own) == 1 or len(sets) == 1):
        return (own or list(sets.values()))[0].open()
    whole = sets.get("", sets.get("train"))
    if whole is None or wanted not in ("train", "val"):
        names = ", ".join(repr(name) for name in sets if name) or "one set that is not split ('all')"
        raise DataError(root, f"has no split {split!r}; it has {names}")
    dataset = whole.open()
    is_val = held_out(dataset.image_ids)
    chosen = [index for index, val in enumerate(is_val) if val == (wanted == "val")]
    if not chosen:
        raise DataError(
            whole.path,
            "has one picture, and no other set is here; add pictures to it, or a second set for validation",
        )
    return _Part(dataset, chosen)


class _Part:
    """Some samples of a data set."""

    def __init__(self, dataset: Listed, indices: Sequence[int]) -> None:
        self._dataset, self._indices = dataset, tuple(indices)

    @property
    def categories(self) -> Categories:
        return self._dataset.categories

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._indices[index]]


def _shapes(text: str, split: str) -> ShapesDataset:
    """`shapes` or `shapes:96x128`: 10,000 pictures to train on, 100 others for "val" and for "test"."""
    match = re.fullmatch(r"shapes(?::([1-9]\d*)x([1-9]\d*))?", text)
    if match is None:
        raise DataError(text, "expected shapes or shapes:HEIGHTxWIDTH, as in shapes:96x128")
    size = (int(match[1]), int(match[2])) if match[1] else (96, 128)
    seeds = {"train": 0, "val": 1, "test": 2}
    wanted = split_of_word(split)
    if not wanted:
        raise DataError(text, f"has no split {split!r}; it has 'train', 'val' and 'test'")
    return ShapesDataset(size=size, count=10_000 if wanted == "train" else 100, seed=seeds[wanted])

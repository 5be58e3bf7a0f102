"""Shards: tar files that hold images with their ground truth, each with an index beside it.

`unimask shards` writes them (`data/packing.py`). A shard has the layout of WebDataset: the files of a sample
follow one another and share a name up to the first dot. They are KEY.json (the id of the image), KEY.npz
(ground truth: `layers`, `labels` and `is_crowd` of segments, or `boxes`, `labels`, `areas` and `is_crowd`)
and the image, the file as it was or a PNG. The index NAME.json says where each sample lies, what the
categories are, and how the images are read. So a sample is one piece of a file, which is read on its own:
every process reads the samples that it trains on and no others, in any order, and a run that is resumed goes
on in the same order. Shards may lie in an object store, of which the same pieces are asked for.
"""

import io
import re
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from unimask.config.tasks import Task
from unimask.data.category_tables import categories_from_json
from unimask.data.items import ItemDataset
from unimask.data.read import read_image
from unimask.data.reading import PLAIN, Reading, settled
from unimask.data.sources import Format, Source, Sources, refused, split_of_word
from unimask.errors import ConfigError, DataError, some_of
from unimask.files import json_of, read_json, text_of
from unimask.remote import Location, Url, at_once, location, read_part, read_whole, size_of
from unimask.structures import Categories, Detections, Sample, Segments, Size, Truth

SUMMARY_NAME = "shards.json"
"""In a folder of shards: which belong to it. Written last, so it is missing where they are not complete."""

Kind = Literal["segments", "boxes"]
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, kw_only=True)
class ShardItem:
    """A sample in a shard: `length` bytes from `start` on."""

    shard: Location
    image_id: str
    start: int
    length: int
    reading: Reading  # as decided for the set that the shard was written from

    @property
    def files(self) -> tuple[Path, ...]:
        """No files: the shard is shared by many samples."""
        return ()

    def stated_size(self) -> tuple[Size, ...]:
        """Return none: `reading` is decided already."""
        return ()

    def read(self, reading: Reading = PLAIN) -> Sample:
        """Read the image, and its ground truth.

        Raises:
            DataError: the shard is cut off, or is another file than its index is of.
        """
        files = self._files()
        place = f"{self.shard} ({self.image_id})"
        if files.keys() < {"json", "npz"} or len(files) != 3:
            raise self._damaged(
                f"holds {some_of(sorted(files)) if files else 'nothing'} in the place of the sample"
            )
        (image,) = (content for ending, content in files.items() if ending not in ("json", "npz"))
        try:
            pixels = read_image(image, settled(reading, self.reading))
        except DataError as error:
            raise DataError(place, error.reason) from None
        truth = truth_from_bytes(files["npz"], place)
        if isinstance(truth, Segments) and truth.size != tuple(pixels.shape[1:]):
            raise DataError(place, f"has an image of {tuple(pixels.shape[1:])} and masks of {truth.size}")
        return Sample(image=pixels, truth=truth, image_id=self.image_id)

    def _files(self) -> dict[str, bytes]:
        """Return the content of its files by the ending of their names."""
        piece = _piece(self.shard, self.start, self.length)
        if len(piece) < self.length:
            raise self._damaged("is cut off")
        try:
            with tarfile.open(fileobj=io.BytesIO(piece)) as archive:
                parts = {member.name: archive.extractfile(member) for member in archive}
                return {name.partition(".")[2]: part.read() for name, part in parts.items() if part}
        except (tarfile.TarError, EOFError) as error:
            raise self._damaged(f"is damaged ({error})") from None

    def _damaged(self, reason: str) -> DataError:
        return DataError(
            f"{self.shard} ({self.image_id})", f"{reason}; copy or write the shard and its index again"
        )


def _piece(shard: Location, start: int, length: int) -> bytes:
    """Return bytes of a shard, fewer where it ends before.

    Raises:
        DataError: it cannot be read.
    """
    if isinstance(shard, Url):
        return read_part(shard, start, start + length)
    try:
        with shard.open("rb") as file:
            file.seek(start)
            return file.read(length)
    except OSError as error:
        raise DataError(shard, f"cannot be read ({error.strerror})") from None


def index_of(shard: Path) -> Path:
    """Return the path of the index of a shard."""
    return shard.with_suffix(".json")


def truth_to_bytes(truth: Truth) -> bytes:
    """Return ground truth as the bytes of an npz file, the same ones every time."""
    content = io.BytesIO()
    values = {
        name: tensor.numpy()
        for name, tensor in vars(truth).items()
        if isinstance(tensor, Tensor) and name != "scores"
    }
    np.savez_compressed(content, **cast(dict[str, Any], values))
    return content.getvalue()


def truth_from_bytes(content: bytes, place: str) -> Truth:
    """Return the ground truth of an npz file.

    Raises:
        DataError: it is none.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            values = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        scores = torch.ones(len(values["labels"]))
        return (
            Segments(scores=scores, **values) if "layers" in values else Detections(scores=scores, **values)
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(place, f"its ground truth cannot be read ({error}); write the shard again") from None


def shards_named(pattern: str) -> tuple[Location, ...]:
    """Return the places of a pattern such as `shards/train-{0000..0099}.tar`."""
    match = _RANGE.search(pattern)
    if match is None:
        return (location(pattern),)
    first, last = match[1], match[2]
    numbers = range(int(first), int(last) + 1)
    before, after = pattern[: match.start()], pattern[match.end() :]
    return tuple(
        path for number in numbers for path in shards_named(f"{before}{number:0{len(first)}d}{after}")
    )


def _find(path: Path, task: Task) -> Sources:
    if path.is_dir():
        return _in_folder(path, task)
    return _of_pattern(path, task) if path.suffix == ".tar" else {}


def shards_in_store(url: Url, task: Task) -> Sources:
    """Return the sets of shards in an object store: a folder of them, or a pattern.

    Raises:
        DataError: none are there, or they cannot be had.
    """
    if url.suffix == ".tar":
        return _of_pattern(url, task)
    if size_of(url.inside(SUMMARY_NAME)) is None:
        raise DataError(
            str(url),
            f"holds no {SUMMARY_NAME}; in an object store data are shards: write them here with `unimask "
            "shards` and copy the folder, or name tar files of it as .../train-{0000..0099}.tar",
        )
    return _listed(url, task)


def _of_pattern(pattern: Location, task: Task) -> Sources:
    shards = shards_named(str(pattern))
    if not shards:
        raise DataError(str(pattern), "names no shard: the first number must not be larger than the last")
    there = at_once(_is_there, shards)
    if missing := [str(shard) for shard, found in zip(shards, there, strict=True) if not found]:
        raise DataError(
            str(pattern), f"{len(missing)} of {len(shards)} shards are missing: {some_of(missing, 3)}"
        )
    return _sources({"": shards}, pattern, task)


def _is_there(shard: Location) -> bool:
    return size_of(shard) is not None if isinstance(shard, Url) else shard.is_file()


def _in_folder(folder: Path, task: Task) -> Sources:
    if not (folder / SUMMARY_NAME).is_file():
        found = sorted(folder.glob("*.tar"))
        if found and index_of(found[0]).is_file():
            raise DataError(
                folder, f"its shards are not complete ({SUMMARY_NAME} is missing); write them again"
            )
        return {}
    return _listed(folder, task)


def _listed(folder: Location, task: Task) -> Sources:
    """Return the sets that the summary of a folder names."""
    summary = _inside(folder, SUMMARY_NAME)
    said = _read_json(summary)
    splits = said.get("shards") if isinstance(said, dict) else None
    if not isinstance(splits, dict) or not all(isinstance(names, list) for names in splits.values()):
        raise DataError(str(summary), "is no list of shards; write them again")
    named = {
        split_of_word(str(split)): tuple(_inside(folder, Path(str(name)).name) for name in names)
        for split, names in splits.items()
    }
    return _sources(named, folder, task)


def _inside(folder: Location, name: str) -> Location:
    return folder.inside(name) if isinstance(folder, Url) else folder / name


def _read_json(place: Location) -> object:
    if isinstance(place, Path):
        return read_json(place)
    return json_of(text_of(read_whole(place), str(place)), str(place))


def _sources(splits: Mapping[str, tuple[Location, ...]], place: Location, task: Task) -> Sources:
    sources: Sources = {}
    for split, shards in splits.items():
        kind = _head(shards[0]).kind
        if kind == "boxes" and task != "detection":
            sources[split] = refused(place, f"its shards hold boxes and no masks, which {task} needs")
        else:
            sources[split] = Source(path=place, open=partial(_open, shards))
    return sources


SHARDS = Format(
    layouts="  tar files of `unimask shards`: their folder, or FOLDER/train-{0000..0099}.tar", find=_find
)


@dataclass(frozen=True, kw_only=True)
class ShardHead:
    """The head of an index of a shard, without its samples; the same for all shards of a set."""

    kind: Kind
    categories: Categories
    reading: Reading


def head_to_json(kind: Kind, categories: list[dict[str, object]], reading: Reading) -> dict[str, object]:
    """Return the head of an index, ready for JSON."""
    return {"unimask_shard": 1, "kind": kind, "categories": categories, "reading": asdict(reading)}


def _head(shard: Location) -> ShardHead:
    return _index(shard)[0]


def _index(shard: Location) -> tuple[ShardHead, list[tuple[str, int, int]]]:
    index = Url(shard.text.removesuffix(".tar") + ".json") if isinstance(shard, Url) else index_of(shard)
    path = str(index)
    if not _is_there(index):
        raise DataError(
            str(shard), f"has no index {index.name} beside it; write shards with `unimask shards`"
        )
    said = _read_json(index)
    try:
        assert isinstance(said, dict)
        if said["unimask_shard"] != 1:
            raise DataError(path, f"is of version {said['unimask_shard']}; this unimask reads version 1")
        kind: Kind = {"segments": "segments", "boxes": "boxes"}[said["kind"]]  # type: ignore[assignment]
        categories = categories_from_json(said["categories"])
        head = ShardHead(kind=kind, categories=categories, reading=Reading(**said["reading"]))
        samples = [(str(name), int(start), int(length)) for name, start, length in said["samples"]]
    except (AssertionError, KeyError, TypeError, ValueError, ConfigError) as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else "no object"
        raise DataError(path, f"is no index of a shard ({reason}); write the shards again") from None
    return head, samples


def _open(shards: tuple[Location, ...]) -> ItemDataset:
    head = _head(shards[0])
    items = []
    for shard, (own, samples) in zip(shards, at_once(_index, shards), strict=True):
        if own != head:
            raise DataError(
                str(shard), f"has other categories or settings than {shards[0].name}; write both alike"
            )
        items += [
            ShardItem(shard=shard, image_id=name, start=start, length=length, reading=head.reading)
            for name, start, length in samples
        ]
    return ItemDataset(categories=head.categories, items=tuple(items), known=head.reading)

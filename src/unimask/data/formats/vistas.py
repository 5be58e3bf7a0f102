"""Mapillary Vistas as unzipped: versions 1.2 and 2.0, and version 1 in its first layout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unimask.config.tasks import Task
from unimask.data.category_tables import color_or_default
from unimask.data.formats.coco_file import Record, load_json, records, whole
from unimask.data.formats.coco_panoptic import open_panoptic
from unimask.data.formats.folders_pairs import pair_up
from unimask.data.items import ItemDataset
from unimask.data.numbered import NumberScheme, numbered_dataset
from unimask.data.sources import Format, Source, Sources, refused
from unimask.errors import DataError
from unimask.structures import Categories

_WORDS = {"train": "training", "val": "validation"}


@dataclass(frozen=True, kw_only=True)
class Version:
    """Where a version of the annotations lies."""

    folder: str  # in `training` and `validation`
    config: str
    panoptic: str


VERSIONS = (
    Version(folder="v1.2", config="config_v1.2.json", panoptic="panoptic_2018.json"),
    Version(folder="", config="config.json", panoptic="panoptic_2018.json"),
    Version(folder="v2.0", config="config_v2.0.json", panoptic="panoptic_2020.json"),
)
"""In the order in which they are preferred."""


def open_numbered(config: Path, images: Path, labels: Path, divisor: int) -> ItemDataset:
    """Open `labels` (`divisor` 1: a number is a class) or `instances` (256: class x 256 + object).

    Source: the demo that comes with the data set; classes count the labels of the configuration from 0.

    Raises:
        DataError: the configuration is missing or broken, or images or labels are missing.
    """
    entries = _labels(config)
    evaluated = [number for number, entry in enumerate(entries) if entry.get("evaluate", True)]
    names = _names(config, entries)
    scheme = NumberScheme(
        categories=Categories(
            names=tuple(names[number] for number in evaluated),
            is_thing=tuple(bool(entries[number].get("instances", False)) for number in evaluated),
            file_ids=tuple(number + 1 for number in evaluated),  # as in the panoptic JSON
            colors=tuple(color_or_default(entries[number].get("color"), number) for number in evaluated),
        ),
        classes=tuple(evaluated),
        ignored=tuple(number for number in range(len(entries)) if number not in evaluated),
        plain=0,
        divisor=divisor,
        way_out=f"are labels and {config.name} of one version?",
    )
    return numbered_dataset(pair_up(images, labels), scheme)


def open_evaluated(path: Path, config: Path, images: Path) -> ItemDataset:
    """Open the panoptic JSON; a configuration gives names; categories that it does not evaluate are void.

    Raises:
        DataError: a file cannot be used, or images are missing.
    """
    content = load_json(path)
    if config.is_file():
        content = _evaluated(path, content, config)
    return open_panoptic(path, content, folders=[images], strict=False)


def _evaluated(path: Path, content: Record, config: Path) -> Record:
    """Return the categories and segments of a panoptic JSON that are evaluated; category n is label n - 1."""
    entries = _labels(config)
    names = _names(config, entries)
    categories: dict[int, Record] = {}
    for entry in records(path, content, "categories"):
        number = whole(path, entry, "id", f"category {entry.get('name')!r}")
        if not 1 <= number <= len(entries):
            raise DataError(
                path,
                f"has category {number}, {config.name} has {len(entries)} labels; take both of one version",
            )
        if entries[number - 1].get("evaluate", True):
            categories[number] = {**entry, "name": names[number - 1]}
    dropped = {entry["id"] for entry in records(path, content, "categories")} - set(categories)
    annotations = [
        {**entry, "segments_info": _without(entry.get("segments_info"), dropped)}
        for entry in records(path, content, "annotations")
    ]
    return {**content, "categories": list(categories.values()), "annotations": annotations}


def _without(segments: object, dropped: set[object]) -> object:
    if not isinstance(segments, list):
        return segments  # the reader says what is wrong
    return [s for s in segments if not (isinstance(s, Mapping) and s.get("category_id") in dropped)]


def _labels(config: Path) -> list[Record]:
    if not config.is_file():
        raise DataError(
            config, "no such file; it comes with the data set, beside training/, and says what labels mean"
        )
    expected = "the configuration of Mapillary Vistas (labels, ...)"
    return records(config, load_json(config, expected), "labels", expected)


def _names(config: Path, entries: Sequence[Record]) -> list[str]:
    """Return the readable names of all labels, which are those of the panoptic JSON of version 1.2."""
    names = [str(entry.get("readable", "")).strip() for entry in entries]
    if len(set(names)) < len(names) or "" in names:
        raise DataError(config, "a label has no 'readable' name, or two have the same one")
    return names


def _find(path: Path, task: Task) -> Sources:
    """Find the folder of `training` and `validation`; `path` may also name a version in it.

    That is `config_v2.0.json`, `training/v2.0` or a panoptic JSON. Otherwise it is 1.2, if that is there.
    """
    for root in (path, *path.parents[:4]) if path.is_file() or path.name.startswith("v") else (path,):
        version = next((v for v in VERSIONS if _has(root, v) and _means(path, root, v)), None)
        if version is not None:
            return _sets(root, version, task)
    return {}


def _has(root: Path, version: Version) -> bool:
    """Return whether annotations of the version are there, as only this data set has them."""
    folders = [root / word / version.folder for word in _WORDS.values() if (root / word / "images").is_dir()]
    if version.folder:
        return any(folder.is_dir() for folder in folders)
    if any((folder / "panoptic" / version.panoptic).is_file() for folder in folders):
        return True
    config = root / version.config
    kinds = [folder / kind for folder in folders for kind in ("labels", "instances")]
    return any(kind.is_dir() for kind in kinds) and config.is_file() and b'"readable"' in config.read_bytes()


def _means(path: Path, root: Path, version: Version) -> bool:
    """Return whether the path stands for the version: the root for any, else its names say which."""
    parts = path.relative_to(root).parts
    if not parts:
        return True
    if path.is_dir():
        return parts in [(word, version.folder) for word in _WORDS.values()]
    places = [(word, *Path(version.folder, "panoptic").parts) for word in _WORDS.values()]
    return parts == (version.config,) or parts in [(*place, version.panoptic) for place in places]


def _sets(root: Path, version: Version, task: Task) -> Sources:
    sets = {
        split: _source(root, version, root / word, task)
        for split, word in _WORDS.items()
        if (root / word / "images").is_dir()
    }
    if (root / "testing").is_dir():
        reason = "the ground truth of Mapillary Vistas' test images is not public; evaluate on 'val'"
        sets["test"] = refused(root / "testing", reason)
    return sets


def _source(root: Path, version: Version, place: Path, task: Task) -> Source:
    """Return the first annotations that serve the task."""
    folder, config = place / version.folder, root / version.config
    panoptic = folder / "panoptic" / version.panoptic
    kind, divisor = ("labels", 1) if task == "semantic" else ("instances", 256)
    numbered = folder / kind
    of_json = Source(path=panoptic, open=partial(open_evaluated, panoptic, config, place / "images"))
    of_pngs = Source(path=numbered, open=partial(open_numbered, config, place / "images", numbered, divisor))
    sources = [of_json] * panoptic.exists() + [of_pngs] * numbered.exists()
    if task == "semantic" and config.is_file():
        sources.reverse()
    if sources:
        return sources[0]
    return refused(
        folder, f"has neither {kind}/ nor panoptic/{version.panoptic}, one of which the task needs"
    )


VISTAS = Format(
    layouts="  training/, validation/ with images/, and config_v1.2.json (Mapillary Vistas)",
    find=_find,
)

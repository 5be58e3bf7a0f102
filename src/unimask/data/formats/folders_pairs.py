"""Images in folders, each with the label map of its name, and which of them are of a split."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from unimask.data.formats.coco_file import load_json
from unimask.data.naming import files_below
from unimask.data.numbered import LabelPair
from unimask.data.read import IMAGE_SUFFIXES
from unimask.errors import DataError

_LABEL_ENDINGS = ("", "_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_L")
_LOSSY = (".jpg", ".jpeg", ".jfif", ".webp", ".avif")  # suffixes of files whose numbers may have changed
NO_JPEG = "JPEG and WebP change the numbers of label maps, so they are not read; save them as PNG"


def pair_up(images: Path, labels: Path, names: Sequence[str] | None = None) -> list[LabelPair]:
    """Pair every image of a folder with the label map of the same name; `names` chooses some.

    Label maps may end in `_mask`, `_label`, `_gt`, `_seg` or `_L` after the image's name. Images in
    sub-folders are paired with label maps in sub-folders of the same name; those without one are left out.
    `names` are without suffix, and with the sub-folder.

    Raises:
        DataError: an image has no labels, labels have no image, or two files have one name.
    """
    by_name = _by_name(images, readable_files(images))
    maps = _by_name(labels, readable_files(labels, maps=True))
    wanted = list(by_name) if names is None else list(dict.fromkeys(names))
    absent = [name for name in wanted if name not in by_name]
    if absent:
        raise DataError(images, f"{len(absent)} images of the split are missing, the first is {absent[0]!r}")
    pairs, unlabelled, used = [], [], set()
    for name in wanted:
        found = [name + ending for ending in _LABEL_ENDINGS if name + ending in maps]
        if not found:
            unlabelled.append(name)
            continue
        used.add(found[0])
        pairs.append(LabelPair(image=by_name[name], labels=maps[found[0]]))
    missing = [name for name in unlabelled if names is not None or "/" not in name or not pairs]
    if missing:
        jpegs = any((labels / f"{missing[0]}{suffix}").is_file() for suffix in _LOSSY)
        raise DataError(
            labels,
            f"{len(missing)} of {len(wanted)} images in {images} have no label map, the first is "
            f"{missing[0]!r}; " + (NO_JPEG if jpegs else "label them or move them out"),
        )
    orphans = [name for name in maps if name not in used] if names is None else []
    if orphans:
        raise DataError(
            images,
            f"{len(orphans)} label maps in {labels} have no image here, the first is {orphans[0]!r}; "
            "add the images or move the labels out",
        )
    return pairs


def left_out(images: Path, labels: Path, pairs: Sequence[LabelPair]) -> tuple[str, ...]:
    """Say what the two folders hold beside the pairs: images in sub-folders, and files that are no images."""
    used = {file for pair in pairs for file in (pair.image, pair.labels)}
    found = []
    unpaired = [path for path in readable_files(images) if path not in used and path.parent != images]
    if unpaired:
        found.append(
            f"{len(unpaired)} images in sub-folders of {images} have no label map in a sub-folder of the "
            f"same name and are left out, the first is {unpaired[0].relative_to(images)}"
        )
    for folder, maps in ((images, False), (labels, True)):
        readable = set(readable_files(folder, maps=maps))
        others = [path for path in files_below(folder) if path not in readable]
        if others:
            kind = "label map" if maps else "image"
            found.append(
                f"{len(others)} files in {folder} are no {kind} and are left out, the first is "
                f"{others[0].relative_to(folder)}"
            )
    return tuple(found)


def readable_files(folder: Path, *, maps: bool = False) -> list[Path]:
    """Return the images in a folder and its sub-folders, or the label maps."""
    suffixes = IMAGE_SUFFIXES - set(_LOSSY) if maps else IMAGE_SUFFIXES
    return [path for path in files_below(folder) if path.suffix.lower() in suffixes]


def _by_name(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Return the files by their name without suffix, with sub-folder, in composed Unicode (NFC)."""
    found: dict[str, Path] = {}
    for path in files:
        name = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        if name in found:
            raise DataError(
                folder,
                f"{found[name].name} and {path.name} have one name, so it is not clear whose labels are "
                "meant; move one out",
            )
        found[name] = path
    return found


def read_splits(root: Path) -> dict[str, list[str]]:
    """Read the image names (without suffix) of each split from `splits.json`; empty without the file.

    Raises:
        DataError: the file does not hold lists of names.
    """
    path = root / "splits.json"
    if not path.exists():
        return {}
    content = load_json(path, 'an object: {"train": ["name of an image", ...], "val": [...]}')
    splits = {}
    for split, names in content.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(path, f"{split!r} is no list of image names")
        splits[split] = [unicodedata.normalize("NFC", _without_suffix(name)) for name in names]
    return splits


def _without_suffix(name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else str(path)

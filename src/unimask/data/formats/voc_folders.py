"""What the two kinds of Pascal VOC share: where a set lies, and the lists of its splits."""

from collections.abc import Callable, Container, Sequence
from pathlib import Path

from unimask.data.read import numbered_lines
from unimask.errors import DataError, some_of

PHOTOS = "JPEGImages"


def find_set(root: Path, holds: Callable[[Path], bool]) -> Path | None:
    """Find the folder that holds annotations: this one, `VOC2012` in it, or one further down.

    Raises:
        DataError: there are several.
    """
    places = [root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]
    found = [place for place in places if holds(place)]
    if len(found) > 1:
        raise DataError(root, f"holds several sets: {some_of(p.name for p in found)}; name one of them")
    return found[0] if found else None


def read_lists(lists: Sequence[Path], known: Container[str], annotation: str) -> dict[str, tuple[str, ...]]:
    """Read the stems of each list but `trainval` and empty ones; `default` is the set that is not split, "".

    Raises:
        DataError: a list names a stem that is not `known`; list, line and the missing `annotation` are named.
    """
    splits = {}
    for path in lists:
        if path.stem == "trainval":
            continue
        stems = []
        for number, line in numbered_lines(path):
            if line.startswith("#"):
                continue
            stems.append(line.rsplit("/", 1)[-1])
            if stems[-1] not in known and path.stem == "test":
                stems = []  # its annotations are often not public; who asks for it hears that it is not there
                break
            if stems[-1] not in known:
                raise DataError(path, f"line {number}: {stems[-1]!r} has no {annotation.format(stems[-1])}")
        if stems:
            splits[path.stem.lower() if path.stem != "default" else ""] = tuple(dict.fromkeys(stems))
    return splits

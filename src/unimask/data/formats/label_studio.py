"""Label Studio: a JSON list of tasks with polygons, brushes, rectangles and ellipses, in percent."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from unimask.config.tasks import Task
from unimask.data.drawn import (
    Drawn,
    DrawnImage,
    Outline,
    Region,
    box_ring,
    drawn_dataset,
    ellipse_ring,
    ring,
    said_without_area,
)
from unimask.data.formats.coco_file import Record
from unimask.data.items import ItemDataset
from unimask.data.naming import Folders, find_image
from unimask.data.read import IMAGE_SUFFIXES
from unimask.data.sources import Format, Source, Sources
from unimask.errors import DataError, some_of
from unimask.files import first_bytes, read_json
from unimask.structures import Size

LABELLED = {shape: f"{shape}labels" for shape in ("polygon", "brush", "rectangle", "ellipse")}
"""The kinds of shapes with an area -> those of the results that hold such a shape and its label in one."""
KINDS = tuple(LABELLED.values())
_WIDTHS = (3, 4, 8, 16)  # bits of the four kinds of length that are written
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what the server puts before the name of a file


@dataclass(frozen=True, kw_only=True)
class Brush:
    """A painted mask in Label Studio's run lengths, which hold four channels; the last one is the mask.

    Source: github.com/thi-ng/umbrella, packages/rle-pack, which the tool uses.
    """

    runs: tuple[int, ...]  # bytes
    size: Size

    def pixels(self, size: Size) -> ndarray:
        """Return the pixels of the mask in an image of this size.

        Raises:
            ValueError: the runs are damaged or of an image of another size.
        """
        if self.size != size:
            raise ValueError(
                f"a brush is for {self.size[1]} x {self.size[0]} pixels, the image has {size[1]} x {size[0]}"
            )
        return np.flatnonzero(unpack_brush(self.runs, 4 * size[0] * size[1])[3::4])


def unpack_brush(data: Sequence[int], expected: int) -> ndarray:
    """Decode Label Studio's packed run lengths of an expected number of values.

    A header of bits: how many values (32), bits of a value minus one (5), bits of four kinds of length minus
    one (4 each). Then stretches: a bit that says whether it is one value repeated, the kind of its length
    (2), the length minus one, and the value or the values.

    Raises:
        ValueError: they are damaged.
    """
    bits = np.unpackbits(np.array(data, dtype=np.uint8))
    place = 0

    def read(width: int, count: int = 1) -> ndarray:
        nonlocal place
        if place + width * count > bits.size:
            raise ValueError("the runs of a brush are cut off")
        taken = bits[place : place + width * count].reshape(count, width).astype(np.int64)
        place += width * count
        powers: ndarray = taken @ (1 << np.arange(width - 1, -1, -1, dtype=np.int64))
        return powers

    total, width = int(read(32)[0]), int(read(5)[0]) + 1
    lengths = read(4, 4) + 1
    if total != expected:
        raise ValueError(f"a brush holds {total // 4} pixels, the image {expected // 4}")
    values, filled = np.zeros(total, dtype=np.uint8 if width <= 8 else np.int64), 0
    while filled < total:
        repeated, kind = int(read(1)[0]), int(read(2)[0])
        count = int(read(int(lengths[kind]))[0]) + 1
        stretch = read(width) if repeated else read(width, count)
        if filled + count > total:
            raise ValueError("the runs of a brush are damaged")
        values[filled : filled + count] = stretch
        filled += count
    return values


def pack_brush(values: Bool[ndarray, " values"]) -> list[int]:
    """Encode a mask, 0 or 255 for each value, in run lengths that `unpack_brush` decodes."""
    numbers = np.asarray(values, dtype=np.uint8)
    ends = np.append(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1, numbers.size)
    starts = np.append(0, ends[:-1])
    bits = [f"{numbers.size:032b}00111", *(f"{width - 1:04b}" for width in _WIDTHS)]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        value = f"{255 * int(numbers[start]):08b}"
        for first in range(start, end, 1 << _WIDTHS[-1]):
            count = min(end - first, 1 << _WIDTHS[-1])
            kind = next(index for index, width in enumerate(_WIDTHS) if count <= 1 << width)
            bits.append(f"1{kind:02b}{count - 1:0{_WIDTHS[kind]}b}{value}")
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def is_label_studio(path: Path) -> bool:
    """Return whether a JSON begins as a list of tasks."""
    if path.suffix.lower() != ".json":
        return False
    start = first_bytes(path, 1 << 14)
    return bool(
        re.match(rb"\s*\[", start) and re.search(rb'"(annotations|completions|data|image)"\s*:', start)
    )


def open_label_studio(path: Path) -> ItemDataset:
    """Open a sample per task that has an annotation: the first that was not cancelled, which may be empty.

    Labels are those that occur, sorted; a shape and its label may be two results of one id. Points, lines,
    whole-image choices and shapes without a label are left out and reported, as are all labels of a shape
    but the first. Images are searched beside the JSON and in `images`, under the name in the task or the one
    before the
    upload.

    Raises:
        DataError: the file is no export of kind JSON, nothing is drawn in it, or a result is broken.
    """
    tasks = _tasks(path)
    labelled = [task for task in tasks if _annotations(task)]
    results = [(task, _results(path, task)) for task in labelled]
    unlabelled = len(tasks) - len(labelled)
    names = sorted({name for _, entries in results for _, name, _ in entries})
    if not names:
        raise DataError(path, f"{len(tasks)} tasks hold no polygons, brushes, rectangles or ellipses")
    labels = {name: label for label, name in enumerate(names)}
    files = Folders()
    images = [_image(path, task, entries, labels, files) for task, entries in results]
    said = (f"{unlabelled} of {len(tasks)} tasks of {path.name} have no annotation yet and are left out",)
    several = sum(len(_annotations(task)) > 1 for task in labelled)
    first = (f"{several} tasks of {path.name} have several annotations, of which the first is taken",)
    kinds = Counter(str(result.get("type")) for task in labelled for result in _given_results(path, task))
    bare = sum(kinds[shape] for shape in LABELLED)
    flat = Counter({kind: count for kind, count in kinds.items() if kind not in (*LABELLED, *KINDS)})
    many = [given for _, entries in results for *_, one in entries if len(given := _labels_of(one)) > 1]
    taken = f"{len(many)} shapes of {path.name} have several labels, of which the first is taken"
    left_out = (
        *said * bool(unlabelled),
        *first * bool(several),
        *(f"{bare} shapes of {path.name} have no label and are left out",) * bool(bare),
        *(f"{taken}: {some_of(given)}" for given in many[:1]),
        *said_without_area(flat, f"results of {path.name}"),
    )
    return drawn_dataset(names, images, left_out=left_out)


def _tasks(path: Path) -> list[Record]:
    content = read_json(path)
    if not isinstance(content, list) or not content or not all(isinstance(task, dict) for task in content):
        raise DataError(path, "is no list of tasks; expected an export of Label Studio")
    if not all(isinstance(task.get("data"), dict) for task in content):
        raise DataError(path, "has tasks without 'data'; export as JSON, not as JSON-MIN or CSV")
    return content


def _annotations(task: Record) -> list[Record]:
    """Return the annotations of a task that were not cancelled."""
    given = task.get("annotations", task.get("completions", []))
    found = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    return [annotation for annotation in found if not annotation.get("was_cancelled")]


def _given_results(path: Path, task: Record) -> list[Record]:
    """Return the results of the annotation of a task that is taken, of any kind, shapes with their labels."""
    results = _annotations(task)[0].get("result") or []
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise DataError(
            path, f"task {task.get('id')} has a result that is no list of objects; export it again"
        )
    shapes = {str(one["id"]) for one in results if str(one.get("type")) in LABELLED and "id" in one}
    apart = {
        str(result["id"]): labels
        for result in results
        if result.get("type") == "labels"
        and str(result.get("id")) in shapes
        and (labels := _labels_of(result))
    }
    kept = [one for one in results if not (one.get("type") == "labels" and str(one.get("id")) in apart)]
    return [_with_labels(result, apart) for result in kept]


def _with_labels(result: Record, apart: Mapping[str, list[object]]) -> Record:
    """Return a shape with the labels that another result of its id has; anything else as it is."""
    kind, value, number = str(result.get("type")), result.get("value"), str(result.get("id"))
    if kind not in LABELLED or number not in apart or not isinstance(value, dict):
        return result
    joined = LABELLED[kind]
    return {**result, "type": joined, "value": {**value, joined: apart[number]}}


def _labels_of(result: Record) -> list[object]:
    """Return the labels in a result; none where it has none."""
    value = result.get("value")
    found = value.get(str(result.get("type"))) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _results(path: Path, task: Record) -> list[tuple[str, str, Record]]:
    """Return the results with an area: what messages call them, their label, and themselves."""
    found = []
    for number, result in enumerate(_given_results(path, task), 1):
        kind = result.get("type")
        if kind not in KINDS:
            continue
        where = f"task {task.get('id')}, result {number}"
        names = _labels_of(result)
        if not names:
            raise DataError(path, f"{where} has no {kind}")
        if result.get("image_rotation"):
            raise DataError(
                path,
                f"{where} was drawn on an image that was turned by {result['image_rotation']} degrees in the "
                "tool; turn the file itself, or draw it again",
            )
        found.append((where, str(names[0]), result))
    return found


def _image(
    path: Path,
    task: Record,
    entries: Sequence[tuple[str, str, Record]],
    labels: Mapping[str, int],
    files: Folders,
) -> DrawnImage:
    name = _image_name(path, task, {result.get("to_name") for *_, result in entries})
    sizes = {_size(path, where, result) for where, _, result in entries}
    if len(sizes) > 1:
        raise DataError(path, f"task {task.get('id')} has results for images of different sizes")
    objects = tuple(
        Drawn(label=labels[name], region=_region(path, where, result), where=where)
        for where, name, result in entries
    )
    before_upload = _UPLOADED.sub("", name.replace("\\", "/").rsplit("/", 1)[-1])
    folders = [path.parent, path.parent / "images", path.parent.parent / "images"]
    image = find_image(path, (name, before_upload), folders, files)
    return DrawnImage(image=image, source=path, size=tuple(sizes), objects=objects)


def _image_name(path: Path, task: Record, targets: set[object]) -> str:
    """Return the name of the image of a task whose results are drawn on `targets`, by the tool's names."""
    data = task["data"]
    assert isinstance(data, dict)  # `_tasks` has checked it
    texts = {key: _file_name(value) for key, value in data.items() if isinstance(value, str)}
    names = {key: text for key, text in texts.items() if Path(text).suffix.lower() in IMAGE_SUFFIXES}
    if not names:
        raise DataError(path, f"task {task.get('id')} names no image in its data")
    if len(names) == 1 and len(targets) < 2:
        return next(iter(names.values()))
    key = next(iter(targets)) if len(targets) == 1 else "image"
    if len(targets) > 1 or key not in names:
        raise DataError(
            path,
            f"task {task.get('id')} names the images {some_of(names.values())}, and its "
            f"shapes are drawn on {some_of(sorted(map(str, targets)))}; export a task for each image",
        )
    return names[str(key)]


def _file_name(text: str) -> str:
    """Return the path in an address: that after `?d=` (local files), else that before `?`."""
    before, _, after = text.partition("?")
    return unquote(after.removeprefix("d=")) if after.startswith("d=") else unquote(before)


def _size(path: Path, where: str, result: Record) -> Size:
    height, width = result.get("original_height"), result.get("original_width")
    if not isinstance(height, int) or not isinstance(width, int):
        raise DataError(path, f"{where} has no original_width and original_height")
    return height, width


def _region(path: Path, where: str, result: Record) -> Region:
    value, kind = result["value"], result["type"]
    assert isinstance(value, dict)  # `_results` has checked it
    height, width = _size(path, where, result)
    if kind == "brushlabels":
        runs = value.get("rle")
        if not isinstance(runs, list) or not all(isinstance(r, int) and 0 <= r < 256 for r in runs):
            raise DataError(path, f"{where}: its rle is no list of bytes")
        return Brush(runs=tuple(runs), size=(height, width))
    if kind == "polygonlabels":
        points = value.get("points")
        if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
            raise DataError(path, f"{where}: points is no list of [x, y]")
        shares = ring(path, where, [number for point in points for number in point]) / 100
        return Outline(rings=(shares,), relative=True)
    keys = ("x", "y", "width", "height") if kind == "rectanglelabels" else ("x", "y", "radiusX", "radiusY")
    numbers = [value.get(key) for key in keys] + [value.get("rotation", 0), 0]
    x, y, across, down, degrees = ring(path, where, numbers)[:5].tolist()
    x, across = x * width / 100, across * width / 100
    y, down = y * height / 100, down * height / 100
    if kind == "ellipselabels":
        return Outline(rings=(ellipse_ring(x, y, across, down, degrees),))
    turn = np.deg2rad(degrees)  # around the upper left corner, clockwise
    right = np.array([np.cos(turn), np.sin(turn)]) * across
    below = np.array([-np.sin(turn), np.cos(turn)]) * down
    corner = np.array([x, y])
    corners = np.stack([corner, corner + right, corner + right + below, corner + below])
    return Outline(rings=(corners.ravel() if degrees else box_ring(x, y, x + across, y + down),))


def _find(path: Path, task: Task) -> Sources:
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    tasks = [file for file in files if is_label_studio(file)]
    if len(tasks) > 1:
        raise DataError(path, f"has several lists of tasks: {some_of(p.name for p in tasks)}; name one")
    return {"": Source(path=tasks[0], open=partial(open_label_studio, tasks[0]))} if tasks else {}


LABEL_STUDIO = Format(
    layouts="  one JSON of tasks, images beside it or in images/ (Label Studio)",
    find=_find,
)

"""Reading results: the files that `Result.save` and `unimask predict` wrote become a `Result` again."""

from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float32, Int16, Int64
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from unimask.config.tasks import Task
from unimask.data.rasterise import LayerPainter, shape_pixels
from unimask.data.read import AnyImage, read_image, read_panoptic_ids
from unimask.data.reading import PLAIN, Reading
from unimask.errors import DataError
from unimask.files import exists, read_json
from unimask.ops.id_maps import MOST_SEGMENTS
from unimask.results.result import Result
from unimask.structures import Categories, Detections, Segments

_Count = Annotated[int, Field(ge=1)]
_Score = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class _Category:
    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]


@dataclass(frozen=True)
class _RunLengths:
    size: tuple[int, int]
    counts: str


@dataclass(frozen=True)
class _Segment:
    id: Annotated[int, Field(ge=1, le=MOST_SEGMENTS)]
    category_id: int
    score: _Score
    segmentation: _RunLengths | None = None


@dataclass(frozen=True)
class _Box:
    category_id: int
    score: _Score
    area: float
    bbox: tuple[float, float, float, float]


@dataclass(frozen=True)
class _Document:
    """The JSON of a result, as `Result.to_json` makes it."""

    task: Task
    height: _Count
    width: _Count
    categories: tuple[_Category, ...]
    segments: tuple[_Segment, ...] = ()
    boxes: tuple[_Box, ...] = ()


@cache
def _adapter() -> TypeAdapter:  # not subscripted: beartype cannot check pydantic generics
    return TypeAdapter(_Document)


def read_result(path: str | Path, image: AnyImage, reading: Reading = PLAIN) -> Result:
    """Return the result that a NAME.json of `Result.save` or `unimask predict` holds.

    Ids, labels, scores and pixels are those that were saved; of segments that may not overlap, the pixels
    are in the NAME.segments.png beside the JSON. `image` is the image that was segmented, and `reading` how
    it was read, where that is not the default.

    Raises:
        DataError: a file is missing, damaged or no result, the image has another size, or it was larger than
            memory, whose results are not read back.
    """
    path = Path(path)
    found = _document(path)
    pixels = read_image(image, reading)
    size = (found.height, found.width)
    if pixels.shape[1:] != size:
        raise DataError(
            path,
            f"is the result of an image of {found.width} x {found.height} pixels, but the image has "
            f"{pixels.shape[2]} x {pixels.shape[1]}; give the one that was segmented",
        )
    categories = Categories(
        names=tuple(one.name for one in found.categories),
        is_thing=tuple(one.isthing for one in found.categories),
        file_ids=tuple(one.id for one in found.categories),
        colors=tuple(one.color for one in found.categories),
    )
    prediction = _detections(path, found) if found.task == "detection" else _segments(path, found)
    name = path.name.removesuffix(".json")
    return Result(task=found.task, name=name, image=pixels, prediction=prediction, categories=categories)


def _document(path: Path) -> _Document:
    content = read_json(path)
    try:
        found: _Document = _adapter().validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise DataError(path, f"is no result of unimask ({what}); give a NAME.json of `predict`") from None
    numbers = [one.id for one in found.segments]
    if len(set(numbers)) < len(numbers):
        raise DataError(path, "is no result of unimask (two segments have one id)")
    return found


def _labels(path: Path, found: _Document, records: tuple[_Segment, ...] | tuple[_Box, ...]) -> list[int]:
    labels = {one.id: label for label, one in enumerate(found.categories)}
    for one in records:
        if one.category_id not in labels:
            raise DataError(path, f"is no result of unimask (it lists no category {one.category_id})")
    return [labels[one.category_id] for one in records]


def _detections(path: Path, found: _Document) -> Detections:
    boxes = np.array([one.bbox for one in found.boxes], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        labels=torch.tensor(_labels(path, found, found.boxes), dtype=torch.int64),
        scores=torch.tensor([one.score for one in found.boxes], dtype=torch.float32),
        areas=torch.tensor([one.area for one in found.boxes], dtype=torch.float32),
        is_crowd=torch.zeros(len(boxes), dtype=torch.bool),
    )


def _segments(path: Path, found: _Document) -> Segments:
    count = max((one.id for one in found.segments), default=0)
    labels: Int64[Tensor, " segments"] = torch.zeros(count, dtype=torch.int64)
    scores: Float32[Tensor, " segments"] = torch.zeros(count)
    places = torch.tensor([one.id - 1 for one in found.segments], dtype=torch.int64)
    labels[places] = torch.tensor(_labels(path, found, found.segments), dtype=torch.int64)
    scores[places] = torch.tensor([one.score for one in found.segments], dtype=torch.float32)
    layers = _painted(path, found, count) if found.task == "instance" else _id_map(path, found)
    is_crowd = torch.zeros(count, dtype=torch.bool)
    return Segments(layers=layers, labels=labels, scores=scores, is_crowd=is_crowd)


def _painted(path: Path, found: _Document, count: int) -> Int16[Tensor, "layers height width"]:
    """Return the id map of instances, whose masks are in the JSON."""
    size = (found.height, found.width)
    masks = {one.id: one.segmentation for one in found.segments}
    painter = LayerPainter(size)
    for number in range(1, count + 1):
        pixels = np.zeros(0, dtype=np.int64)  # of a segment without any, which is not in the file
        if number in masks:
            mask = masks[number]
            if mask is None or mask.size != size:
                raise DataError(path, f"segment {number} has no mask of the image's size")
            try:
                pixels = shape_pixels(mask.counts, size)
            except ValueError as error:
                raise DataError(path, f"segment {number}: {error}") from None
        painter.add(pixels)
    return painter.result()


def _id_map(path: Path, found: _Document) -> Int16[Tensor, "1 height width"]:
    """Return the id map of segments that do not overlap, which is beside the JSON."""
    beside = path.with_name(path.name.removesuffix(".json") + ".segments.png")
    if not exists(beside) and exists(beside.with_suffix(".tif")):
        raise DataError(path, "is the result of an image larger than memory, which is not read back")
    ids = read_panoptic_ids(beside)
    known = {0, *(one.id for one in found.segments)}
    if ids.shape != (found.height, found.width) or not known.issuperset(np.unique(ids).tolist()):
        raise DataError(beside, f"does not belong to {path.name}: another size, or ids that are not in it")
    return torch.from_numpy(ids.astype(np.int16)[None])

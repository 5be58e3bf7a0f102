"""Results as the interface and the page send them."""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16
from numpy import ndarray
from PIL import Image
from scipy import ndimage

from unimask.config.tasks import Task
from unimask.results.drawing import inner_point, segment_colors
from unimask.results.formats.panoptic import as_id_image
from unimask.results.found import Record
from unimask.results.result import Result
from unimask.serve.cached import Thresholds


@dataclass(frozen=True, kw_only=True)
class RunLengths:
    """A mask in COCO's compressed run lengths."""

    size: list[int]  # height, width
    counts: str


@dataclass(frozen=True, kw_only=True)
class SegmentRecord:
    """One segment."""

    id: int  # 1, 2, ...
    category_id: int
    category: str
    score: float  # 0 to 1
    area: int  # pixels
    bbox: list[int]  # x, y, width, height
    segmentation: RunLengths


@dataclass(frozen=True, kw_only=True)
class BoxRecord:
    """One box."""

    id: int  # 1, 2, ... by falling score
    category_id: int
    category: str
    score: float  # 0 to 1
    area: float  # pixels
    bbox: list[float]  # x, y, width, height


@dataclass(frozen=True, kw_only=True)
class CategoryRecord:
    """A category that the model knows."""

    id: int
    name: str
    isthing: int
    color: list[int]  # RGB


@dataclass(frozen=True, kw_only=True)
class SegmentAnswer:
    """What was found, as segments: the answer for panoptic, instance and semantic."""

    model: str
    name: str
    task: Task
    height: int
    width: int
    categories: list[CategoryRecord]
    notes: list[str]  # sentences about what was not read of the file, or was guessed
    segments: list[SegmentRecord]


@dataclass(frozen=True, kw_only=True)
class BoxAnswer:
    """What was found, as boxes: the answer for detection."""

    model: str
    name: str
    task: Task
    height: int
    width: int
    categories: list[CategoryRecord]
    notes: list[str]  # sentences about what was not read of the file, or was guessed
    boxes: list[BoxRecord]


def answer(model: str, result: Result, notes: Sequence[str]) -> Record:
    """Return the fields of a `SegmentAnswer` or a `BoxAnswer`."""
    about: Record = {"model": model, "name": result.name, "notes": list(notes), **result.to_json()}
    if result.task != "detection":
        masks = zip(result.segments, result.run_lengths, strict=True)
        about["segments"] = [{**found.to_json(), "segmentation": mask} for found, mask in masks]
    return about


def page_answer(result: Result, task: Task, thresholds: Thresholds) -> Record:
    """Return what the page draws: the segments with colours and places for names, and the id map."""
    about: Record = {
        "task": task,
        "height": result.height,
        "width": result.width,
        "thresholds": vars(thresholds),
    }
    if result.task == "detection":
        colors = segment_colors(result.prediction.labels.tolist(), result.categories).tolist()
        rows = [
            {
                "id": box.id,
                "category": box.category,
                "score": box.score,
                "area": box.area,
                "bbox": list(box.bbox),
                "color": colors[box.id - 1],
                "thing": True,
            }
            for box in result.segments
        ]
        return {**about, "kind": "boxes", "segments": rows, "layers": 0, "map": ""}
    layers = result.id_maps()
    return {
        **about,
        "kind": "segments",
        "segments": _segment_rows(result, layers),
        "layers": len(layers),
        "map": packed(layers.astype("<i2")),
    }


def _segment_rows(result: Result, layers: Int16[ndarray, "layers height width"]) -> list[Record]:
    labels = result.prediction.labels.tolist()
    colors = segment_colors(labels, result.categories).tolist()
    anchors = _anchors(layers, len(labels))
    return [
        {
            "id": segment.id,
            "category": segment.category,
            "score": segment.score,
            "area": segment.area,
            "bbox": list(segment.bbox),
            "color": colors[segment.id - 1],
            "anchor": anchors[segment.id],
            "thing": result.categories.is_thing[labels[segment.id - 1]],
        }
        for segment in result.segments
    ]


def _anchors(layers: Int16[ndarray, "layers height width"], count: int) -> dict[int, list[int]]:
    """Return for each segment the (x, y) where its name has the most space, or its first pixel."""
    found: dict[int, list[int]] = {}
    for layer in layers:
        for index, box in enumerate(ndimage.find_objects(layer, max_label=count)):
            if box is None:
                continue
            mask = layer[box] == index + 1
            row, column = inner_point(mask, (1, 1)) or np.argwhere(mask)[0].tolist()
            found[index + 1] = [box[1].start + column, box[0].start + row]
    return found


def packed(values: ndarray) -> str:
    """Return the bytes of an array, deflated, in Base64."""
    return base64.b64encode(zlib.compress(values.tobytes(), 1)).decode("ascii")


def id_map(result: Result) -> Image.Image:
    """Return each pixel's segment id as a colour, id = R + 256 G + 65536 B; 0 is none.

    Where instances overlap, the surest one shows.
    """
    layers = result.id_maps().astype(np.uint16)
    none = np.uint16(65535)
    ids = np.where(layers == 0, none, layers).min(axis=0)  # instances are numbered by falling score
    return as_id_image(np.where(ids == none, np.uint16(0), ids))

"""What was found in one picture, in the forms that people and files want it."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from hotcoco import mask as run_lengths
from jaxtyping import UInt8
from PIL import Image
from scipy import ndimage
from torch import Tensor

from unimask.config.images import Task
from unimask.errors import DataError
from unimask.files import complete_files
from unimask.results.drawing import overlay
from unimask.results.tools import PIXELS, Transform, as_geojson, as_label_studio, as_supervision, as_yolo
from unimask.structures import Categories, Segments

if TYPE_CHECKING:
    from supervision import Detections


class RunLengthMask(TypedDict):
    """A mask in COCO's compressed run-length encoding; `pycocotools.mask.decode` reads it."""

    size: list[int]  # [height, width] of the picture
    counts: str


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment of a result."""

    id: int  # the number in `Result.prediction.layers` and in the panoptic PNG; 1, 2, ...
    category_id: int  # as annotation files number categories
    category: str
    score: float  # 0..1
    area: int  # pixels
    bbox: tuple[int, int, int, int]  # x, y, width, height: the smallest box around the segment, in pixels
    segmentation: RunLengthMask


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What was found in one picture, at the picture's own size.

    `prediction` is the raw result on the CPU. Instances are ordered by falling score and may overlap;
    panoptic and semantic segments do not. `name` is the stem of the picture's file.
    """

    task: Task
    name: str
    image: UInt8[Tensor, "3 height width"]
    prediction: Segments
    categories: Categories

    @property
    def height(self) -> int:
        """Rows of the picture."""
        return self.prediction.size[0]

    @property
    def width(self) -> int:
        """Columns of the picture."""
        return self.prediction.size[1]

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The segments that have pixels, in the order of their ids."""
        found: dict[int, Segment] = {}
        for layer in self.prediction.layers.numpy():
            for index, box in enumerate(ndimage.find_objects(layer, max_label=len(self.prediction))):
                if box is not None:
                    found[index] = self._segment(index, layer, box)
        return tuple(found[index] for index in sorted(found))

    def _segment(self, index: int, layer: np.ndarray, box: tuple[slice, slice]) -> Segment:
        rows, columns = box
        mask = np.zeros((self.height, self.width), dtype=np.uint8, order="F")
        mask[box] = layer[box] == index + 1
        encoded = run_lengths.encode(mask)
        label = int(self.prediction.labels[index])
        return Segment(
            id=index + 1,
            category_id=self.categories.file_ids[label],
            category=self.categories.names[label],
            score=round(float(self.prediction.scores[index]), 6),
            area=int(mask[box].sum()),
            bbox=(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
            segmentation={"size": [self.height, self.width], "counts": encoded["counts"].decode("ascii")},
        )

    def plot(self) -> Image.Image:
        """The picture with its segments drawn on it: filled, outlined, named; of the picture's size."""
        return overlay(self.image, self.prediction, self.categories, scores=self.task == "instance")

    def to_json(self) -> dict[str, object]:
        """What `save` writes into `NAME.json`: task, height, width, categories and segments.

        Segments have `segmentation` (compressed run lengths) for instances only; the pixels of the others are
        in the panoptic PNG.
        """
        return {
            "task": self.task,
            "height": self.height,
            "width": self.width,
            "categories": category_records(self.categories),
            "segments": [self._record(segment) for segment in self.segments],
        }

    def _record(self, segment: Segment) -> dict[str, object]:
        record: dict[str, object] = {
            "id": segment.id,
            "category_id": segment.category_id,
            "category": segment.category,
            "score": segment.score,
            "area": segment.area,
            "bbox": list(segment.bbox),
        }
        if self.task == "instance":
            record["segmentation"] = segment.segmentation
        return record

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, object]]:
        """Records as COCO has them.

        For instances: results (`image_id`, `category_id`, `bbox`, `area`, `score`, `segmentation`), ready for
        `COCO.loadRes`. Otherwise: the `segments_info` of a panoptic annotation, to the PNG of
        `to_panoptic_png`.
        """
        if self.task == "instance":
            return [
                {
                    "image_id": image_id,
                    "category_id": segment.category_id,
                    "bbox": list(segment.bbox),
                    "area": segment.area,
                    "score": segment.score,
                    "segmentation": segment.segmentation,
                }
                for segment in self.segments
            ]
        return [
            {
                "id": segment.id,
                "category_id": segment.category_id,
                "bbox": list(segment.bbox),
                "area": segment.area,
                "iscrowd": 0,
            }
            for segment in self.segments
        ]

    def to_supervision(self) -> "Detections":
        """`supervision.Detections` with masks; `class_id` is the index of the category.

        Raises:
            ConfigError: supervision is not installed (the extra `supervision` of unimask).
        """
        return as_supervision(self.prediction, self.categories)

    def to_yolo(self) -> str:
        """The text of a YOLO segmentation label file: a line `label x1 y1 x2 y2 ...` per segment.

        The label is the index into the categories' names, coordinates are shares of width and height. Holes
        and parts are joined to one polygon by bridges without width.
        """
        return as_yolo(self.prediction)

    def to_label_studio(
        self, image: str = "", *, model: str = "unimask", from_name: str = "label", to_name: str = "image"
    ) -> dict[str, object]:
        """A task for Label Studio's import, with the segments as a prediction of brushes, exact to the pixel.

        `image` is the address of the picture as Label Studio sees it (by default the result's name).
        `from_name` and `to_name` are those of the BrushLabels and of the Image in the labelling interface.
        """
        return as_label_studio(
            self.prediction,
            self.categories,
            image=image or self.name,
            model=model,
            from_name=from_name,
            to_name=to_name,
        )

    def to_geojson(self, transform: Transform = PIXELS, *, crs: str = "") -> dict[str, object]:
        """A GeoJSON FeatureCollection of polygons that follow the edges of pixels, with holes and parts.

        `transform` (a, b, c, d, e, f) takes a corner at (column, row) to x = a column + b row + c, y = d
        column + e row + f, as rasterio's `dataset.transform[:6]`; without it coordinates are pixels. `crs`
        names coordinates other than longitude and latitude.

        Raises:
            ConfigError: the transform maps the picture onto a line or a point.
        """
        return as_geojson(self.prediction, self.categories, transform, crs)

    def to_panoptic_png(self) -> Image.Image:
        """Each pixel's segment id as a colour, id = R + 256 G + 65536 B; 0 is none. The COCO panoptic format.

        Raises:
            ValueError: the result is of instances, which may overlap.
        """
        if self.task == "instance":
            raise ValueError(
                "instances may overlap, so one picture cannot hold them; use to_coco() or to_json()"
            )
        ids = self.prediction.layers[0].numpy().astype(np.uint16)
        channels = np.stack([ids & 255, ids >> 8, np.zeros_like(ids)], axis=2)
        return Image.fromarray(channels.astype(np.uint8))

    def save(self, folder: str | Path, name: str = "") -> tuple[Path, ...]:
        """Write NAME.overlay.png, NAME.segments.png (not for instances) and NAME.json; their paths come out.

        Nothing is half-written: all files are complete under temporary names before the first one takes its
        own. An earlier result of the same name is replaced, and so a panoptic PNG of it goes away when
        instances are saved. Without a name the picture's is taken.

        Raises:
            DataError: the folder cannot be made or written to, or the name is none.
        """
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"
        writers: dict[str, Callable[[Path], object]] = {
            "overlay.png": lambda path: self.plot().save(path, format="PNG"),
            "segments.png": lambda path: self.to_panoptic_png().save(path, format="PNG", optimize=True),
            "json": lambda path: path.write_text(text, encoding="utf-8"),
        }
        stale: tuple[str, ...] = ()
        if self.task == "instance":
            del writers["segments.png"]
            stale = ("segments.png",)
        return write_together(Path(folder), name or self.name, writers, stale)


def category_records(categories: Categories) -> list[dict[str, object]]:
    """The categories as the JSON of a result lists them."""
    rows = zip(categories.file_ids, categories.names, categories.is_thing, categories.colors, strict=True)
    return [
        {"id": file_id, "name": name, "isthing": int(is_thing), "color": list(color)}
        for file_id, name, is_thing, color in rows
    ]


def write_together(
    folder: Path, name: str, writers: dict[str, Callable[[Path], object]], stale: tuple[str, ...]
) -> tuple[Path, ...]:
    """Write FOLDER/NAME.ENDING for each ending, all of them complete before the first one appears.

    Files with a `stale` ending, of an earlier result of this name, are removed.

    Raises:
        DataError: the folder cannot be made or written to, or the name is none.
    """
    if not name or name in (".", "..") or {"/", os.sep, "\0"} & set(name):
        raise DataError(name, "is not a name for files; give one without folders")
    try:
        return _write_together(folder, name, writers, [folder / f"{name}.{ending}" for ending in stale])
    except OSError as error:
        raise DataError(folder, f"results cannot be written here ({error.strerror or error})") from None


def _write_together(
    folder: Path, name: str, writers: dict[str, Callable[[Path], object]], stale: list[Path]
) -> tuple[Path, ...]:
    paths = tuple(folder / f"{name}.{ending}" for ending in writers)
    with complete_files(paths) as temporary:
        for part, write in zip(temporary, writers.values(), strict=True):
            write(part)
    for path in stale:
        path.unlink(missing_ok=True)
    return paths

"""The segments that were found in one image, and every form they are shown and saved in."""

from collections.abc import Callable, Iterator
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
from unimask.results.drawing import overlay
from unimask.results.found import Found, Record, document, found_in, save_result
from unimask.results.tools import PIXELS, Transform, as_geojson, as_label_studio, as_supervision, as_yolo
from unimask.structures import Categories, Segments

if TYPE_CHECKING:
    from supervision import Detections


class RunLengthMask(TypedDict):
    """A mask in COCO's compressed run-length encoding; `pycocotools.mask.decode` reads it."""

    size: list[int]  # [height, width] of the image
    counts: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What was found in one image, at the image's own size.

    `prediction` is the raw result on the CPU. Instances are ordered by falling score and may overlap;
    panoptic and semantic segments do not. `name` is the stem of the image's file.
    """

    task: Task
    name: str
    image: UInt8[Tensor, "3 height width"]
    prediction: Segments
    categories: Categories

    @property
    def height(self) -> int:
        """Rows of the image."""
        return self.prediction.size[0]

    @property
    def width(self) -> int:
        """Columns of the image."""
        return self.prediction.size[1]

    @cached_property
    def segments(self) -> tuple[Found, ...]:
        """The segments that have pixels, in the order of their ids."""
        found: dict[int, Found] = {}
        for layer, index, box in self._boxes():
            rows, columns = box
            label = int(self.prediction.labels[index])
            score = float(self.prediction.scores[index])
            area = int((layer[box] == index + 1).sum())
            bbox = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            found[index] = found_in(self.categories, index + 1, label, score, area, bbox)
        return tuple(found[index] for index in sorted(found))

    @cached_property
    def run_lengths(self) -> tuple[RunLengthMask, ...]:
        """The masks of the `segments`, in their order."""
        found: dict[int, RunLengthMask] = {}
        for layer, index, box in self._boxes():
            mask = np.zeros((self.height, self.width), dtype=np.uint8, order="F")
            mask[box] = layer[box] == index + 1
            counts = run_lengths.encode(mask)["counts"].decode("ascii")
            found[index] = {"size": [self.height, self.width], "counts": counts}
        return tuple(found[index] for index in sorted(found))

    def _boxes(self) -> Iterator[tuple[np.ndarray, int, tuple[slice, slice]]]:
        """Yield the layer, the index and the box of each segment that has pixels."""
        for layer in self.prediction.layers.numpy():
            for index, box in enumerate(ndimage.find_objects(layer, max_label=len(self.prediction))):
                if box is not None:
                    yield layer, index, box

    def plot(self) -> Image.Image:
        """Return the image, at its own size, with its segments filled, outlined and named."""
        return overlay(self.image, self.prediction, self.categories, scores=self.task == "instance")

    def to_json(self) -> dict[str, object]:
        """Return what `save` writes into `NAME.json`: task, height, width, categories and segments.

        Segments have `segmentation` (compressed run lengths) for instances only; the pixels of the others are
        in the panoptic PNG.
        """
        records = [found.to_json() for found in self.segments]
        if self.task == "instance":
            records = self._with_masks(records)
        return document(self.task, (self.height, self.width), self.categories, segments=records)

    def _with_masks(self, records: list[Record]) -> list[Record]:
        masks = zip(records, self.run_lengths, strict=True)
        return [{**record, "segmentation": mask} for record, mask in masks]

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, object]]:
        """Return records as COCO has them.

        For instances: results (`image_id`, `category_id`, `bbox`, `area`, `score`, `segmentation`), ready for
        `COCO.loadRes`. Otherwise: the `segments_info` of a panoptic annotation, to the PNG of
        `to_panoptic_png`.
        """
        if self.task == "instance":
            return self._with_masks([{"image_id": image_id, **one.to_coco()} for one in self.segments])
        return [
            {
                "id": one.id,
                "category_id": one.category_id,
                "bbox": list(one.bbox),
                "area": one.area,
                "iscrowd": 0,
            }
            for one in self.segments
        ]

    def to_supervision(self) -> "Detections":
        """Return `supervision.Detections` with masks; `class_id` is the index of the category.

        Raises:
            ConfigError: supervision is not installed (the extra `supervision` of unimask).
        """
        return as_supervision(self.prediction, self.categories)

    def to_yolo(self) -> str:
        """Return the text of a YOLO segmentation label file: a line `label x1 y1 x2 y2 ...` per segment.

        The label is the index into the categories' names, coordinates are shares of width and height. Holes
        and parts are joined to one polygon by bridges without width.
        """
        return as_yolo(self.prediction)

    def to_label_studio(
        self, image: str = "", *, model: str = "unimask", from_name: str = "label", to_name: str = "image"
    ) -> dict[str, object]:
        """Return a task for Label Studio's import: the segments as predicted brushes, exact to the pixel.

        `image` is the address of the image as Label Studio sees it (by default the result's name).
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
        """Return a GeoJSON FeatureCollection of polygons along the edges of pixels, with holes and parts.

        `transform` (a, b, c, d, e, f) takes a corner at (column, row) to x = a column + b row + c, y = d
        column + e row + f, as rasterio's `dataset.transform[:6]`; without it coordinates are pixels. `crs`
        names coordinates other than longitude and latitude.

        Raises:
            ConfigError: the transform maps the image onto a line or a point.
        """
        return as_geojson(self.prediction, self.categories, transform, crs)

    def to_panoptic_png(self) -> Image.Image:
        """Return COCO's panoptic PNG: the segment id of a pixel is R + 256 G + 65536 B; 0 is none.

        Raises:
            ValueError: the result is of instances, which may overlap.
        """
        if self.task == "instance":
            raise ValueError(
                "instances may overlap, so one image cannot hold them; use to_coco() or to_json()"
            )
        ids = self.prediction.layers[0].numpy().astype(np.uint16)
        channels = np.stack([ids & 255, ids >> 8, np.zeros_like(ids)], axis=2)
        return Image.fromarray(channels.astype(np.uint8))

    def save(self, folder: str | Path, name: str = "") -> tuple[Path, ...]:
        """Write NAME.overlay.png, NAME.segments.png (not for instances) and NAME.json; return their paths.

        Nothing is half-written: all files are complete under temporary names before the first one takes its
        own. An earlier result of the same name is replaced, and so a panoptic PNG of it goes away when
        instances are saved. Without a name the image's is taken.

        Raises:
            DataError: the folder cannot be made or written to, or the name is none.
        """
        images: dict[str, Callable[[Path], object]] = {
            "overlay.png": lambda path: self.plot().save(path, format="PNG"),
        }
        if self.task != "instance":
            images["segments.png"] = lambda path: self.to_panoptic_png().save(
                path, format="PNG", optimize=True
            )
        return save_result(folder, name or self.name, self.to_json(), images)

"""The result for one image, segments or boxes, and the forms in which it is shown and saved."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int16, Int64, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from unimask.config.tasks import Task
from unimask.errors import ConfigError, needs_extra, some_of
from unimask.ops.id_maps import chosen
from unimask.results.box_drawing import overlay_boxes
from unimask.results.drawing import overlay
from unimask.results.formats.fiftyone import as_detections, as_segmentation
from unimask.results.formats.geojson import PIXELS, Transform, as_geojson
from unimask.results.formats.label_studio import (
    Labels,
    as_label_studio,
    brush_of,
    polygons_of,
    rectangle_of,
)
from unimask.results.formats.labelme import as_labelme, with_image
from unimask.results.formats.napari import Layer, box_layer, label_layers
from unimask.results.formats.panoptic import as_id_image
from unimask.results.formats.supervision import as_supervision
from unimask.results.formats.table import Table, table_of
from unimask.results.formats.yolo import as_yolo, as_yolo_boxes
from unimask.results.found import Found, Polygons, Record, document, found_in, save_result
from unimask.results.measures import measure_boxes, measure_layers
from unimask.results.regions import (
    RunLengthMask,
    extents_in,
    indices_in,
    masks_in,
    polygons_in,
    run_lengths_in,
)
from unimask.structures import Categories, Detections, Segments, Size

if TYPE_CHECKING:
    import fiftyone
    from pandas import DataFrame
    from supervision import Detections as SupervisionDetections

NOTEBOOK = 1200  # pixels


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result:
    """What was found in one image, at the image's own size: segments, or for `detection` boxes.

    A sequence of what was found: it has a length, and `result[0]`, or each in a loop, is a `found.Found` with
    `id`, `category`, `score`, `area` and `bbox`. A slice, a boolean array or indices give a `Result` of these
    alone, numbered anew: `result[result.scores > 0.5]`, `result[[2, 0]]`. All properties have one entry for
    each, in the same order: instances and boxes by falling score, others as the model gives them. Instances
    may overlap; panoptic and semantic segments do not.

    `prediction` is the raw result on the CPU, where a segment may be without pixels; those are left out
    everywhere else. `name` is the stem of the image's file. Arrays are numpy's; points are (x, y) in pixels
    of the image, whose upper left corner is (0, 0).
    """

    task: Task
    name: str
    image: UInt8[Tensor, "3 height width"]  # RGB
    prediction: Segments | Detections
    categories: Categories

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return self.height, self.width

    @property
    def height(self) -> int:
        """Rows of the image."""
        return self.image.shape[1]

    @property
    def width(self) -> int:
        """Columns of the image."""
        return self.image.shape[2]

    @cached_property
    def segments(self) -> tuple[Found, ...]:
        """What was found, as records: segments that have pixels, or boxes."""
        labels, scores = self.prediction.labels.tolist(), self.prediction.scores.tolist()
        return tuple(
            found_in(self.categories, index + 1, labels[index], scores[index], area, bbox)
            for index, area, bbox in extents_in(self.prediction)
        )

    @property
    def labels(self) -> Int64[ndarray, " segments"]:
        """The category of each, as an index into `categories.names`."""
        return self.prediction.labels.numpy()[self._indices]

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the category of each."""
        return tuple(one.category for one in self.segments)

    @property
    def scores(self) -> Float32[ndarray, " segments"]:
        """The score of each, from 0 to 1."""
        return self.prediction.scores.numpy()[self._indices]

    @property
    def boxes(self) -> Float32[ndarray, "segments 4"]:
        """The box around each (left, top, right, bottom), in pixels, from edge to edge.

        Right and bottom are one more than the last column and row. Boxes of `detection` have fractions, and
        may reach over the border of the image.
        """
        if isinstance(self.prediction, Detections):
            return self.prediction.boxes.numpy()
        corners = [
            (x, y, x + width, y + height) for x, y, width, height in (one.bbox for one in self.segments)
        ]
        return np.array(corners, dtype=np.float32).reshape(-1, 4)

    def id_maps(self) -> Int16[ndarray, "layers height width"]:
        """Return the number of the segment at each pixel, 0 for none: 1 + its index in the prediction.

        Segments that overlap lie in different layers. Of panoptic and semantic segments there is one layer.

        Raises:
            ConfigError: the result is of `detection`: boxes have no pixels.
        """
        return self._as_segments("id_maps").layers.numpy()

    @cached_property
    def masks(self) -> Bool[ndarray, "segments height width"]:
        """The mask of each, True inside; made from the id map when first asked for, and kept.

        Raises:
            ConfigError: the result is of `detection`: boxes have no masks.
        """
        return masks_in(self._as_segments("masks"))

    @cached_property
    def polygons(self) -> tuple[Polygons, ...]:
        """The outline of each along the edges of its pixels: nothing is rounded or simplified.

        A list of parts, each a list of rings: the outer one, and then those of its holes. A ring is a float64
        array (corners, 2) of (x, y), whose last corner is joined to the first. A box has one ring.
        """
        return polygons_in(self.prediction)

    @cached_property
    def run_lengths(self) -> tuple[RunLengthMask, ...]:
        """The mask of each in COCO's compressed run lengths.

        Raises:
            ConfigError: the result is of `detection`: boxes have no masks.
        """
        return run_lengths_in(self._as_segments("run_lengths"))

    @cached_property
    def _indices(self) -> Int64[ndarray, " segments"]:
        """The index in the prediction of each."""
        return indices_in(self.prediction)

    def _as_segments(self, what: str) -> Segments:
        if isinstance(self.prediction, Detections):
            raise ConfigError(what, "boxes of detection have none; take another task, or the `boxes`")
        return self.prediction

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Found]:
        return iter(self.segments)

    @overload
    def __getitem__(self, which: int) -> Found: ...

    @overload
    def __getitem__(self, which: "slice | Sequence[int] | Sequence[bool] | ndarray | Tensor") -> "Result": ...

    def __getitem__(
        self, which: "int | slice | Sequence[int] | Sequence[bool] | ndarray | Tensor"
    ) -> "Found | Result":
        """Return the record of one, or a `Result` of several.

        Raises:
            IndexError: there are not as many, or one is named twice.
        """
        if isinstance(which, int | np.integer):
            return self.segments[int(which)]
        places = which if isinstance(which, slice) else np.asarray(which)
        if not isinstance(places, slice) and places.size == 0 and places.dtype != bool:
            places = places.astype(np.int64)
        indices = self._indices[places]
        if indices.ndim != 1 or len(np.unique(indices)) < len(indices):
            raise IndexError("take each once, by a slice, a boolean for each, or their indices")
        taken = torch.from_numpy(indices.copy())
        if isinstance(self.prediction, Detections):
            return replace(self, prediction=self.prediction.select(taken))
        return replace(self, prediction=chosen(self.prediction, taken))

    def __repr__(self) -> str:
        counts = Counter(self.names).most_common()
        found = some_of((f"{count} {category}" for category, count in counts), 5)
        return f"Result({self.name!r}, {self.task}, {self.width} x {self.height} pixels: {found})"

    def _repr_png_(self) -> bytes:
        """Return the PNG that notebooks show, at most `NOTEBOOK` pixels wide and high."""
        image = self.plot()
        image.thumbnail((NOTEBOOK, NOTEBOOK))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def plot(self) -> Image.Image:
        """Return the image, at its own size, with what was found drawn on it and named."""
        if isinstance(self.prediction, Detections):
            return overlay_boxes(self.image, self.prediction, self.categories)
        return overlay(self.image, self.prediction, self.categories, scores=self.task == "instance")

    def to_table(self, pixel_size: float | None = None) -> Table:
        """Return what is measured about each, as the columns of `segments.csv` (`formats/table.py:table_of`).

        `pixel_size` is how many micrometres a pixel is wide; with it, measures are in micrometres too.
        """
        image = self.image.numpy()
        if isinstance(self.prediction, Detections):
            measured = measure_boxes(self.boxes, image)
        else:
            layers = self.prediction.layers.numpy()
            measured = measure_layers(layers, image, len(self.prediction))[:, self._indices]
        return table_of(self.name, self.segments, measured, pixel_size)

    def to_pandas(self, pixel_size: float | None = None) -> "DataFrame":
        """Return `to_table` as a `pandas.DataFrame` with a row for each.

        Raises:
            MissingPackageError: pandas is not installed (the extra `pandas` of unimask).
        """
        with needs_extra("pandas", "to_pandas"):
            import pandas
        return pandas.DataFrame(self.to_table(pixel_size))

    def to_json(self) -> dict[str, object]:
        """Return the content of `NAME.json`: task, height, width, categories, and `segments` or `boxes`.

        Segments have `segmentation` (compressed run lengths) for instances only; the pixels of the others are
        in the panoptic PNG.
        """
        records = [found.to_json() for found in self.segments]
        if self.task == "instance":
            records = self._with_masks(records)
        kind = "boxes" if self.task == "detection" else "segments"
        return document(self.task, self.size, self.categories, **{kind: records})

    def _with_masks(self, records: list[Record]) -> list[Record]:
        masks = zip(records, self.run_lengths, strict=True)
        return [{**record, "segmentation": mask} for record, mask in masks]

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, object]]:
        """Return records as COCO has them.

        For instances and boxes: results (`image_id`, `category_id`, `bbox`, `area`, `score`, of instances
        also `segmentation`), ready for `COCO.loadRes`. Otherwise: the `segments_info` of a panoptic
        annotation, to the PNG of `to_panoptic_png`.
        """
        if self.task in ("panoptic", "semantic"):
            return [one.to_panoptic() for one in self.segments]
        records: list[Record] = [{"image_id": image_id, **one.to_coco()} for one in self.segments]
        return self._with_masks(records) if self.task == "instance" else records

    def to_supervision(self) -> "SupervisionDetections":
        """Return `supervision.Detections`, with masks of segments; `class_id` is the index of the category.

        Raises:
            MissingPackageError: supervision is not installed (the extra `supervision` of unimask).
        """
        masks = None if isinstance(self.prediction, Detections) else self.masks
        return as_supervision(self.boxes, masks, self.labels, self.scores, self.categories)

    def to_fiftyone(self) -> "fiftyone.Detections | fiftyone.Segmentation":
        """Return the label of a FiftyOne sample: `sample["found"] = result.to_fiftyone()`.

        Of semantic segments it is a `Segmentation`, whose mask has at each pixel 1 + the index of the
        category, 0 for none; else `Detections` with label, confidence, the id as `index`, `area` in pixels
        and the mask. `unimask.fiftyone_dataset` makes a dataset of the results of a folder.

        Raises:
            MissingPackageError: fiftyone is not installed (the extra `fiftyone` of unimask).
        """
        if isinstance(self.prediction, Segments) and self.task == "semantic":
            return as_segmentation(self.prediction.layers[0].numpy(), self.prediction.labels.numpy())
        masks = None if isinstance(self.prediction, Detections) else self.masks
        return as_detections(self.segments, self.boxes, masks, (self.height, self.width))

    def to_napari(self, pixel_size: float | None = None) -> list[Layer]:
        """Return layers of napari as (data, keyword arguments, type): `Layer.create(*layer)` makes each.

        Of segments they are `labels`, whose labels are the segments' ids: one layer, or as many as
        overlapping instances need. Of boxes it is one layer of `shapes`. `features` is `to_table(pixel_size)`
        with a row for each. No package is needed.
        """
        table = self.to_table(pixel_size)
        name = f"{self.name} {self.task}"
        about: dict[str, object] = {"task": self.task, "categories": self.categories.names}
        if isinstance(self.prediction, Detections):
            colors = [self.categories.colors[label] for label in self.labels.tolist()]
            return [box_layer(self.boxes, colors, table, name, about)]
        return label_layers(self.id_maps(), table, name, about)

    def to_yolo(self) -> str:
        """Return the text of a YOLO label file: a line for each, `label x1 y1 x2 y2 ...` or, of boxes,
        `label x y width height`.

        The label is the index into the categories' names, coordinates are shares of width and height. Holes
        and parts are joined to one polygon by bridges without width.
        """
        labels, size = self.labels.tolist(), self.size
        if isinstance(self.prediction, Detections):
            return as_yolo_boxes(labels, self.boxes.tolist(), size)
        return as_yolo(labels, self.polygons, size)

    def to_labelme(self, image: str = "") -> dict[str, object]:
        """Return the content of a JSON of LabelMe: polygons, to be corrected by hand.

        `image` is the path of the image relative to the JSON; without it the image is put inside.
        """
        content = as_labelme(self.segments, self.polygons, self.size, image or self.name)
        return content if image else with_image(content, self.image.numpy())

    def to_label_studio(
        self,
        image: str = "",
        *,
        labels: Labels | None = None,
        model: str = "unimask",
        from_name: str = "label",
        to_name: str = "image",
    ) -> dict[str, object]:
        """Return a task for Label Studio's import: what was found, as a prediction.

        `image` is the address of the image for Label Studio (by default the result's name). `labels`:
        brushes are exact to the pixel, polygons have no holes, and boxes can only be rectangles; by default
        the first that there is. `from_name` and `to_name` are those of the BrushLabels (PolygonLabels,
        RectangleLabels) and of the Image in the labelling interface.

        Raises:
            ConfigError: the result is of `detection`, and labels are not rectangles.
        """
        size = self.size
        boxes = isinstance(self.prediction, Detections)
        kind = labels or ("rectangle" if boxes else "brush")
        values: list[list[Record]]
        if kind == "rectangle":
            values = [[rectangle_of(one, size)] for one in self.segments]
        elif kind == "brush":
            values = [[brush_of(mask)] for mask in self.masks]
        else:
            self._as_segments("polygon labels")
            values = [polygons_of(parts, size) for parts in self.polygons]
        names = {"image": image or self.name, "model": model, "from_name": from_name, "to_name": to_name}
        return as_label_studio(self.segments, values, f"{kind}labels", size, **names)

    def to_geojson(self, transform: Transform = PIXELS, *, crs: str = "") -> dict[str, object]:
        """Return a GeoJSON FeatureCollection of the polygons, which QuPath imports as annotations.

        `transform` (a, b, c, d, e, f) takes a corner at (column, row) to x = a column + b row + c, y = d
        column + e row + f, as rasterio's `dataset.transform[:6]`; without it coordinates are pixels. `crs`
        names coordinates other than longitude and latitude.

        Raises:
            ConfigError: the transform maps the image onto a line or a point.
        """
        return as_geojson(self.segments, self.polygons, self.categories, transform, crs)

    def to_panoptic_png(self) -> Image.Image:
        """Return COCO's panoptic PNG: the segment id of a pixel is R + 256 G + 65536 B; 0 is none.

        Raises:
            ValueError: the result is of instances, which may overlap, or of boxes.
        """
        if self.task in ("instance", "detection"):
            what = "boxes" if self.task == "detection" else "instances"
            raise ValueError(f"{what} may overlap, so one image cannot hold them; use to_coco() or to_json()")
        return as_id_image(self._as_segments("png").layers[0].numpy())

    def save(
        self,
        folder: str | Path,
        name: str = "",
        formats: Sequence[str] = (),
        *,
        image: str = "",
        pixel_size: float | None = None,
        overwrite: bool = False,
    ) -> tuple[Path, ...]:
        """Write the files of some formats (`writing.FORMATS`) into a folder; return their paths.

        By default NAME.overlay.png, NAME.segments.png (not for instances and boxes) and NAME.json. What is
        one file for a folder of images in `unimask predict` is NAME.csv, NAME.coco.json and
        NAME.label_studio.json here. Nothing is half-written: all files are complete under temporary names
        before the first one takes its own. Earlier files of the same names are replaced, and with a new JSON
        the images of an earlier result go away.

        Args:
            folder: is made if need be.
            name: of the files; by default the image's.
            formats: which files.
            image: the path or address of the image, for formats that name it.
            pixel_size: how many micrometres a pixel is wide, for the columns of the CSV.
            overwrite: replace also files that are no earlier results, or that were changed since.

        Raises:
            DataError: the folder cannot be made or written to, the name is none, or a file of one of the
                names is there and is no earlier result.
            ConfigError: there is no such format, or it has no room for the task.
            MissingPackageError: a format needs a package that is not installed.
        """
        from unimask.results.writing import Place, files_of  # which imports this file

        place = Place(folder=Path(folder), name=name or self.name, image=image, pixel_size=pixel_size)
        return save_result(folder, place.name, files_of(self, formats, place), overwrite=overwrite)

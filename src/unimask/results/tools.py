"""Results in the formats of other tools: supervision, YOLO, Label Studio, GeoJSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from unimask.data.formats.label_studio import pack_brush
from unimask.errors import ConfigError, needs_extra
from unimask.ops.outlines import Ring, one_ring, outlines, signed_area
from unimask.structures import Categories, Segments

if TYPE_CHECKING:
    from supervision import Detections

Number = int | float
Transform = tuple[Number, Number, Number, Number, Number, Number]
"""a, b, c, d, e, f: a corner at (column, row) lies at x = a column + b row + c, y = d column + e row + f.

The order of `affine` and rasterio (`dataset.transform[:6]`); GDAL's is c, a, b, f, d, e.
"""

PIXELS: Transform = (1, 0, 0, 0, 1, 0)


def present(segments: Segments) -> list[tuple[int, Bool[ndarray, "height width"]]]:
    """Return the index and the mask of each segment that has pixels."""
    layers = segments.layers.numpy()
    occupied = (segments.areas() > 0).nonzero()[:, 0].tolist()
    return [(index, (layers == index + 1).any(axis=0)) for index in occupied]


def as_supervision(segments: Segments, categories: Categories) -> "Detections":
    """Return `supervision.Detections` with masks; `class_id` is the index of the category.

    Raises:
        MissingPackageError: supervision is not installed.
    """
    with needs_extra("supervision", "to_supervision"):
        import supervision
    found = present(segments)
    masks = np.stack([mask for _, mask in found]) if found else np.zeros((0, *segments.size), dtype=bool)
    kept = [index for index, _ in found]
    labels = segments.labels.numpy()[kept]
    boxes = np.array([_box(mask) for mask in masks], dtype=np.float64).reshape(-1, 4)
    return supervision.Detections(
        xyxy=boxes,
        mask=masks,
        confidence=segments.scores.numpy()[kept],
        class_id=labels,
        data={"class_name": np.array([categories.names[label] for label in labels.tolist()], dtype=str)},
    )


def _box(mask: Bool[ndarray, "height width"]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def as_yolo(segments: Segments) -> str:
    """Return the text of a YOLO segmentation label file: a line `label x1 y1 x2 y2 ...` per segment.

    The label is the index of the category; coordinates are shares of width and height. Polygons follow the
    edges of pixels. The format knows neither holes nor parts: they are joined by bridges without width.
    """
    height, width = segments.size
    lines = []
    for index, mask in present(segments):
        ring = one_ring([ring for part in outlines(mask) for ring in part]) / (width, height)
        numbers = " ".join(f"{number:.8g}" for number in ring.ravel().tolist())
        lines.append(f"{int(segments.labels[index])} {numbers}\n")
    return "".join(lines)


def as_label_studio(
    segments: Segments,
    categories: Categories,
    *,
    image: str,
    model: str,
    from_name: str,
    to_name: str,
) -> dict[str, object]:
    """Return a task with a prediction of brushes, exact to the pixel, ready for Label Studio's import.

    `image` is the image's address as Label Studio sees it. `from_name` and `to_name` are the names of the
    BrushLabels and of the Image in the labelling interface.
    """
    height, width = segments.size
    results = []
    for index, mask in present(segments):
        results.append(
            {
                "id": f"segment_{index + 1}",
                "type": "brushlabels",
                "from_name": from_name,
                "to_name": to_name,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": round(float(segments.scores[index]), 6),
                "value": {
                    "format": "rle",
                    "rle": pack_brush(np.repeat(mask.ravel(), 4)),
                    "brushlabels": [categories.names[int(segments.labels[index])]],
                },
            }
        )
    scores = [float(segments.scores[index]) for index, _ in present(segments)]
    return {
        "data": {to_name: image},
        "predictions": [
            {
                "model_version": model,
                "score": round(sum(scores) / len(scores), 6) if scores else 0.0,
                "result": results,
            }
        ],
    }


def as_geojson(
    segments: Segments, categories: Categories, transform: Transform = PIXELS, crs: str = ""
) -> dict[str, object]:
    """Return a FeatureCollection: a (Multi)Polygon per segment, with its id, category, score and pixels.

    Polygons follow the edges of pixels, moved by `transform`; outer rings run counterclockwise and are
    closed, as RFC 7946 wants it. That has longitude and latitude only; where `transform` leads to other
    coordinates, name them with `crs` (such as `urn:ogc:def:crs:EPSG::32633`), which is written as the older
    standard had it.

    Raises:
        ConfigError: the transform maps the image onto a line or a point.
    """
    a, b, c, d, e, f = transform
    if a * e - b * d == 0:
        raise ConfigError("transform", f"{transform} leaves no area; expected a, b, c, d, e, f")
    linear, shift = np.array([[a, d], [b, e]], dtype=np.float64), np.array([c, f], dtype=np.float64)
    features = []
    for index, mask in present(segments):
        parts = [_closed([ring @ linear + shift for ring in part]) for part in outlines(mask)]
        geometry: dict[str, object] = {"type": "MultiPolygon", "coordinates": parts}
        if len(parts) == 1:
            geometry = {"type": "Polygon", "coordinates": parts[0]}
        properties = {
            "category": categories.names[int(segments.labels[index])],
            "category_id": categories.file_ids[int(segments.labels[index])],
            "score": round(float(segments.scores[index]), 6),
            "pixels": int(mask.sum()),
        }
        features.append({"type": "Feature", "id": index + 1, "geometry": geometry, "properties": properties})
    collection: dict[str, object] = {"type": "FeatureCollection", "features": features}
    if crs:
        collection["crs"] = {"type": "name", "properties": {"name": crs}}
    return collection


def _closed(part: Sequence[Ring]) -> list[list[list[float]]]:
    """Return the rings with the first corner again at the end, the outer one counterclockwise (y is up)."""
    turned = [ring[::-1] for ring in part] if signed_area(part[0]) < 0 else list(part)
    return [[*ring.tolist(), ring[0].tolist()] for ring in turned]

"""Label Studio: a task whose prediction is corrected by hand."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from unimask.data.formats.label_studio import pack_brush
from unimask.results.found import Found, Polygons, Record
from unimask.structures import Size

Labels = Literal["brush", "polygon", "rectangle"]
"""What a segment becomes in Label Studio."""


def brush_of(mask: Bool[ndarray, "height width"]) -> Record:
    """Return the value of a brush, exact to the pixel."""
    return {"format": "rle", "rle": pack_brush(np.repeat(mask.ravel(), 4))}


def polygons_of(parts: Polygons, size: Size) -> list[Record]:
    """Return the values of polygons, one for each part, in percent of the image; holes are filled."""
    scale = 100 / np.array([size[1], size[0]])
    return [{"points": (rings[0] * scale).tolist(), "closed": True} for rings in parts]


def rectangle_of(one: Found, size: Size) -> Record:
    """Return the value of a rectangle, in percent of the image."""
    height, width = size
    left, top, box_width, box_height = one.bbox
    return {
        "x": 100 * left / width,
        "y": 100 * top / height,
        "width": 100 * box_width / width,
        "height": 100 * box_height / height,
        "rotation": 0,
    }


def as_label_studio(
    found: Sequence[Found],
    values: Sequence[Sequence[Record]],
    kind: str,
    size: Size,
    *,
    image: str,
    model: str,
    from_name: str,
    to_name: str,
) -> Record:
    """Return a task with a prediction, ready for Label Studio's import.

    `values` are the regions of each: brushes (`kind` is `brushlabels`), polygons (`polygonlabels`) or
    rectangles (`rectanglelabels`). `image` is the address of the image for Label Studio. `from_name` and
    `to_name` are the names of the labels and of the Image in the labelling interface.
    """
    results = [
        {
            "id": f"segment_{one.id}" + f"_{part}" * (part > 0),
            "type": kind,
            "from_name": from_name,
            "to_name": to_name,
            "original_width": size[1],
            "original_height": size[0],
            "image_rotation": 0,
            "score": one.score,
            "value": {**value, kind: [one.category]},
        }
        for one, regions in zip(found, values, strict=True)
        for part, value in enumerate(regions)
    ]
    score = sum(one.score for one in found) / len(found) if found else 0.0
    return {
        "data": {to_name: image},
        "predictions": [{"model_version": model, "score": round(score, 6), "result": results}],
    }

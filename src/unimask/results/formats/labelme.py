"""LabelMe: a JSON per image, whose shapes are corrected by hand."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from unimask.ops.outlines import one_ring
from unimask.results.found import Found, Polygons, Record
from unimask.structures import Size

VERSION = "5.5.0"  # of the format; masks are shapes since 5.2


def as_labelme(found: Sequence[Found], polygons: Sequence[Polygons], size: Size, image: str) -> Record:
    """Return the content of a JSON of LabelMe: a polygon per part of a segment, along the edges of pixels.

    Parts of a segment share a `group_id`. LabelMe has no holes: they are joined to their outer ring by
    bridges without width. `image` is the path of the image relative to the JSON; see `with_image`.
    """
    shapes = []
    for one, outline in zip(found, polygons, strict=True):
        for part in outline:
            shapes.append(
                {
                    "label": one.category,
                    "points": one_ring(part).tolist(),
                    "group_id": one.id if len(outline) > 1 else None,
                    "description": f"{one.score:.3f}",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
            )
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }


def with_image(content: Record, image: UInt8[ndarray, "3 height width"]) -> Record:
    """Return the content with the image inside, for one that has no file of its own."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "PNG")
    return {**content, "imageData": base64.b64encode(buffer.getvalue()).decode("ascii")}

"""FiftyOne: its `Detections`, and of semantic segments its `Segmentation`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int16, Int64
from numpy import ndarray

from unimask.errors import needs_extra
from unimask.results.found import Found
from unimask.structures import Categories, Size

if TYPE_CHECKING:
    import fiftyone


def as_detections(
    found: Sequence[Found],
    boxes: Float[ndarray, "segments 4"],
    masks: Bool[ndarray, "segments height width"] | None,
    size: Size,
) -> "fiftyone.Detections":
    """Return `fiftyone.Detections`: boxes as shares of the image's width and height, masks within the boxes.

    `boxes` are (left, top, right, bottom) in pixels. `index` is the segment's id, `area` is in pixels.

    Raises:
        MissingPackageError: fiftyone is not installed.
    """
    with needs_extra("fiftyone", "to_fiftyone"):
        import fiftyone
    height, width = size
    detections = []
    for number, (one, (left, top, right, bottom)) in enumerate(zip(found, boxes.tolist(), strict=True)):
        box = [left / width, top / height, (right - left) / width, (bottom - top) / height]
        inside = None
        if masks is not None:
            inside = masks[number, int(top) : int(bottom), int(left) : int(right)].copy()
        detections.append(
            fiftyone.Detection(
                label=one.category,
                bounding_box=box,
                mask=inside,
                confidence=one.score,
                index=one.id,
                area=one.area,
            )
        )
    return fiftyone.Detections(detections=detections)


def as_segmentation(
    ids: Int16[ndarray, "height width"], labels: Int64[ndarray, " numbers"]
) -> "fiftyone.Segmentation":
    """Return `fiftyone.Segmentation`, whose mask has at each pixel 1 + the index of the category, 0 for none.

    `labels` are the categories of the ids 1, 2, ...; `mask_targets` names the values of the mask.

    Raises:
        MissingPackageError: fiftyone is not installed.
    """
    with needs_extra("fiftyone", "to_fiftyone"):
        import fiftyone
    values = np.concatenate([[0], labels + 1])
    kind = np.uint8 if values.max() <= 255 else np.uint16
    return fiftyone.Segmentation(mask=values.astype(kind)[ids])


def mask_targets(categories: Categories) -> dict[int, str]:
    """Return the names of the values in the masks of `as_segmentation`, as FiftyOne's datasets keep them."""
    return dict(enumerate(categories.names, start=1))

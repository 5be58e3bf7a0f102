"""The package supervision: its `Detections`."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int64
from numpy import ndarray

from unimask.errors import needs_extra
from unimask.structures import Categories

if TYPE_CHECKING:
    from supervision import Detections


def as_supervision(
    boxes: Float[ndarray, "segments 4"],
    masks: Bool[ndarray, "segments height width"] | None,
    labels: Int64[ndarray, " segments"],
    scores: Float[ndarray, " segments"],
    categories: Categories,
) -> "Detections":
    """Return `supervision.Detections`; `class_id` is the index of the category.

    Raises:
        MissingPackageError: supervision is not installed.
    """
    with needs_extra("supervision", "to_supervision"):
        import supervision
    return supervision.Detections(
        xyxy=boxes.astype(np.float64),
        mask=masks,
        confidence=scores,
        class_id=labels,
        data={"class_name": np.array([categories.names[label] for label in labels.tolist()], dtype=str)},
    )

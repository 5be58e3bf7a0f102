"""ImageJ and Fiji: a ZIP of regions of interest for the ROI Manager."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimask.errors import DataError, needs_extra
from unimask.results.found import Found, Polygons
from unimask.structures import Categories

_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0  # the segments of a path, as java.awt.geom.PathIterator numbers them
MOST_CORNER = 32_767  # what the format has room for


def write_imagej(
    path: Path, found: Sequence[Found], polygons: Sequence[Polygons], categories: Categories
) -> None:
    """Write a ZIP of ROIs, one per segment, named `0001-CATEGORY`, in the colours of the categories.

    Corners are those of pixels. A segment of one part without holes is a polygon, others are composite ROIs.

    Raises:
        MissingPackageError: roifile is not installed.
        DataError: the image is wider or higher than the format has room for.
    """
    with needs_extra("roi", "the ROIs of ImageJ"):
        import roifile
    colors = dict(zip(categories.names, categories.colors, strict=True))
    rois = []
    for one, outline in zip(found, polygons, strict=True):
        rings = [np.concatenate([ring, ring[:1]]) for part in outline for ring in part]
        if any(ring.max() > MOST_CORNER or ring.min() < -MOST_CORNER for ring in rings):
            raise DataError(path, f"an ROI of ImageJ ends at pixel {MOST_CORNER:,}; the image is larger")
        roi = roifile.ImagejRoi.frompoints(outline[0][0], name=f"{one.id:04}-{one.category}")
        roi.roitype = roifile.ROI_TYPE.POLYGON
        roi.stroke_color = bytes((255, *colors[one.category]))
        corners = np.concatenate(rings)
        roi.left, roi.top = (math.floor(edge) for edge in corners.min(axis=0))
        roi.right, roi.bottom = (math.ceil(edge) for edge in corners.max(axis=0))
        if len(rings) > 1:
            roi.roitype = roifile.ROI_TYPE.RECT  # as the format has it for composite ROIs
            roi.n_coordinates = 0
            roi.integer_coordinates = roi.subpixel_coordinates = None
            roi.multi_coordinates = _composite(rings)
            roi.shape_roi_size = len(roi.multi_coordinates)
        rois.append(roi)
    path.unlink(missing_ok=True)
    roifile.roiwrite(path, rois, mode="w")


def _composite(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Return closed rings as the path of a composite ROI: kinds of segments, each with its point."""
    numbers: list[float] = []
    for ring in rings:
        for kind, (x, y) in zip([_MOVE, *[_LINE] * (len(ring) - 2)], ring[:-1].tolist(), strict=True):
            numbers += [kind, x, y]
        numbers.append(_CLOSE)
    return np.array(numbers, dtype=np.float32)

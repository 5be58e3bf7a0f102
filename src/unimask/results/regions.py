"""Where each segment or box of a prediction lies: extent, mask, outline and run lengths.

Of segments only those that have pixels count; they come in the order of their indices.
"""

from collections.abc import Iterator
from typing import TypedDict

import numpy as np
from hotcoco import mask as run_lengths
from jaxtyping import Bool, Int64
from numpy import ndarray
from scipy import ndimage

from unimask.ops.outlines import outlines
from unimask.results.found import Bbox, Polygons
from unimask.structures import Detections, Segments


class RunLengthMask(TypedDict):
    """A mask in COCO's compressed run-length encoding; `pycocotools.mask.decode` reads it."""

    size: list[int]  # [height, width] of the image
    counts: str


def indices_in(prediction: Segments | Detections) -> Int64[ndarray, " segments"]:
    """Return the indices of all boxes, or of the segments that have pixels."""
    if isinstance(prediction, Detections):
        return np.arange(len(prediction))
    return prediction.areas().nonzero()[:, 0].numpy()


def extents_in(prediction: Segments | Detections) -> Iterator[tuple[int, int | float, Bbox]]:
    """Yield the index, the area and the box (x, y, width, height) of each."""
    if isinstance(prediction, Detections):
        for index, (left, top, right, bottom) in enumerate(prediction.boxes.tolist()):
            width, height = right - left, bottom - top
            bbox = (round(left, 3), round(top, 3), round(width, 3), round(height, 3))
            yield index, round(width * height, 3), bbox
        return
    areas = prediction.areas().tolist()
    boxes = {index: box for _, index, box in _boxes_in(prediction)}
    for index, (rows, columns) in sorted(boxes.items()):
        size = (columns.stop - columns.start, rows.stop - rows.start)
        yield index, areas[index], (columns.start, rows.start, *size)


def masks_in(segments: Segments) -> Bool[ndarray, "segments height width"]:
    """Return the mask of each, True inside."""
    indices = indices_in(segments)
    masks = np.zeros((len(indices), *segments.size), dtype=bool)
    places = {index: place for place, index in enumerate(indices.tolist())}
    for layer, index, box in _boxes_in(segments):
        masks[places[index]][box] = layer[box] == index + 1
    return masks


def polygons_in(prediction: Segments | Detections) -> tuple[Polygons, ...]:
    """Return the outline of each along the edges of its pixels, or the one ring of a box."""
    if isinstance(prediction, Detections):
        return tuple(
            [[np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=np.float64)]]
            for left, top, right, bottom in prediction.boxes.tolist()
        )
    found: dict[int, Polygons] = {}
    for layer, index, box in _boxes_in(prediction):
        start = (box[1].start, box[0].start)
        parts = outlines(layer[box] == index + 1)
        found[index] = [[ring + start for ring in part] for part in parts]
    return tuple(found[index] for index in sorted(found))


def run_lengths_in(segments: Segments) -> tuple[RunLengthMask, ...]:
    """Return the mask of each in COCO's compressed run lengths."""
    found: dict[int, RunLengthMask] = {}
    for layer, index, box in _boxes_in(segments):
        mask = np.zeros(segments.size, dtype=np.uint8, order="F")
        mask[box] = layer[box] == index + 1
        counts = run_lengths.encode(mask)["counts"].decode("ascii")
        found[index] = {"size": list(segments.size), "counts": counts}
    return tuple(found[index] for index in sorted(found))


def _boxes_in(segments: Segments) -> Iterator[tuple[ndarray, int, tuple[slice, slice]]]:
    """Yield the layer, the index and the box of each segment that has pixels, layer by layer."""
    for layer in segments.layers.numpy():
        for index, box in enumerate(ndimage.find_objects(layer, max_label=len(segments))):
            if box is not None:
                yield layer, index, box

"""Boxes: two ways to write them, how much two of them overlap, and those around segments.

`xyxy` are the corners (left, top, right, bottom), `cxcywh` the centre and the size; x runs to the right.
"""

import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from unimask.structures import Detections, Segments, Size


def cxcywh_to_xyxy(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Centre and size as corners; the unit stays."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((center - size / 2, center + size / 2), dim=-1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Corners as centre and size; the unit stays."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def scale_of(size: Size, like: Float[Tensor, "*_ 4"]) -> Float[Tensor, " 4"]:
    """(width, height, width, height): what makes boxes of [0, 1] pixels of an image of this size."""
    return like.new_tensor((size[1], size[0], size[1], size[0]))


def box_areas(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Width times height of `xyxy` boxes; 0 where a corner lies on the wrong side."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def box_iou(
    first: Float[Tensor, "*#batch 4"], second: Float[Tensor, "*#batch 4"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Intersection over union of `xyxy` boxes, and the area of the union; shapes are broadcast.

    0 where both boxes are empty.
    """
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    both = box_areas(torch.cat((low, high), dim=-1))
    union = box_areas(first) + box_areas(second) - both
    return both / _positive(union), union


def generalized_box_iou(
    first: Float[Tensor, "*#batch 4"], second: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*batch"]:
    """IoU minus the share of the smallest box around both that neither covers; from -1 to 1.

    `xyxy` boxes whose shapes are broadcast: `generalized_box_iou(a[:, None], b[None])` compares all pairs.

    Source: Generalized IoU (1902.09630), Algorithm 1.
    """
    iou, union = box_iou(first, second)
    low = torch.minimum(first[..., :2], second[..., :2])
    high = torch.maximum(first[..., 2:], second[..., 2:])
    around = box_areas(torch.cat((low, high), dim=-1))
    return iou - (around - union) / _positive(around)


def clip_boxes(boxes: Float[Tensor, "*batch 4"], size: Size) -> Float[Tensor, "*batch 4"]:
    """`xyxy` boxes in pixels, cut off at the borders of an image of this size."""
    return torch.minimum(boxes.clamp(min=0), scale_of(size, boxes))


def boxes_around(segments: Segments) -> Detections:
    """Return the smallest box around each segment that has a pixel, in their order.

    Areas are those that are stated of the objects, else those of the masks.
    """
    boxes = torch.zeros((len(segments), 4))
    found = torch.zeros(len(segments), dtype=torch.bool)
    for layer in segments.layers.numpy():
        for index, place in enumerate(ndimage.find_objects(layer, max_label=len(segments))):
            if place is not None:
                rows, columns = place
                boxes[index] = torch.tensor([columns.start, rows.start, columns.stop, rows.stop])
                found[index] = True
    return Detections(
        boxes=boxes,
        labels=segments.labels,
        scores=segments.scores,
        areas=segments.object_areas(),
        is_crowd=segments.is_crowd,
    ).select(found)


def _positive(areas: Tensor) -> Tensor:
    return areas.clamp(min=torch.finfo(areas.dtype).tiny)

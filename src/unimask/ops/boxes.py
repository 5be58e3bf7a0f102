"""Bounding boxes: conversion between formats, areas, IoU, and boxes around segments.

`xyxy` is (left, top, right, bottom), `cxcywh` is (centre x, centre y, width, height); y points down.
"""

import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from unimask.structures import Detections, Segments, Size


def cxcywh_to_xyxy(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Convert boxes from centre and size to corners, in the same unit."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((center - size / 2, center + size / 2), dim=-1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Convert boxes from corners to centre and size, in the same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def scale_of(size: Size, like: Float[Tensor, "*_ 4"]) -> Float[Tensor, " 4"]:
    """Return (width, height, width, height): the factors from boxes in [0, 1] to boxes in pixels."""
    return like.new_tensor((size[1], size[0], size[1], size[0]))


def box_areas(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Return width times height of `xyxy` boxes; 0 where right < left or bottom < top."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def box_iou(
    first: Float[Tensor, "*#batch 4"], second: Float[Tensor, "*#batch 4"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Return the intersection over union of `xyxy` boxes and the area of the union; shapes are broadcast.

    The IoU is 0 where both boxes are empty.
    """
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    both = box_areas(torch.cat((low, high), dim=-1))
    union = box_areas(first) + box_areas(second) - both
    return both / _positive(union), union


def generalized_box_iou(
    first: Float[Tensor, "*#batch 4"], second: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*batch"]:
    """Return the generalized IoU of `xyxy` boxes, from -1 to 1.

    It is the IoU minus the fraction of the smallest enclosing box that neither box covers. Shapes are
    broadcast: `generalized_box_iou(a[:, None], b[None])` compares all pairs.

    Source: Generalized IoU (1902.09630), Algorithm 1.
    """
    iou, union = box_iou(first, second)
    low = torch.minimum(first[..., :2], second[..., :2])
    high = torch.maximum(first[..., 2:], second[..., 2:])
    around = box_areas(torch.cat((low, high), dim=-1))
    return iou - (around - union) / _positive(around)


def clip_boxes(boxes: Float[Tensor, "*batch 4"], size: Size) -> Float[Tensor, "*batch 4"]:
    """Clip `xyxy` boxes in pixels to an image of this size."""
    return torch.minimum(boxes.clamp(min=0), scale_of(size, boxes))


def boxes_around(segments: Segments) -> Detections:
    """Return the smallest box around each segment (`xyxy` in pixels), in the order of the segments.

    Segments without a pixel are left out. Areas are the stated areas of the objects if there are any, else
    those of the masks.
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

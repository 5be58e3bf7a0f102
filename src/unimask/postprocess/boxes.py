"""Postprocessing of boxes: boxes in pixels of the file, and panoptic segments of the mask head.

The rules are those of the original code (facebookresearch/detr).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from unimask.config.images import PostprocessConfig
from unimask.ops.boxes import box_areas, cxcywh_to_xyxy, scale_of
from unimask.structures import (
    BoxMaskPrediction,
    BoxPrediction,
    Categories,
    Detections,
    Placement,
    Segments,
    Size,
)

SMALLEST = 4  # pixels: panoptic segments of so few are no segments


def postprocess_boxes(
    prediction: BoxPrediction | BoxMaskPrediction, image: int, placement: Placement, threshold: float
) -> Detections:
    """Return the boxes of one image in pixels of its file, by falling score, from `threshold` on.

    One box per query: its best class that is not no-object, with that probability as score. Boxes may reach
    over the border of the image.

    Source: DETR (2005.12872), Sec. 4 and its code.
    """
    probabilities = prediction.class_logits[-1, image].float().softmax(dim=1)[:, :-1]
    scores, labels = probabilities.max(dim=1)
    boxes = cxcywh_to_xyxy(prediction.boxes[-1, image].float())
    boxes = boxes * scale_of(placement.original, boxes)
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= threshold]
    return Detections(
        boxes=boxes[order],
        labels=labels[order],
        scores=scores[order],
        areas=box_areas(boxes[order]),
        is_crowd=torch.zeros(len(order), dtype=torch.bool, device=order.device),
    )


def postprocess_panoptic(
    prediction: BoxMaskPrediction,
    image: int,
    placement: Placement,
    categories: Categories,
    config: PostprocessConfig,
) -> Segments:
    """Return the panoptic segments of one image at the size of its file; every pixel belongs to one.

    Queries above `config.object_threshold` compete for the pixels; where none is above it, all is void.
    Padding of the canvas is cut off before.

    Raises:
        ValueError: the prediction has another number of classes than `categories`.
    """
    class_logits = prediction.class_logits[-1, image].float()
    if class_logits.shape[1] != len(categories) + 1:
        raise ValueError(
            f"{class_logits.shape[1] - 1} classes predicted, but there are {len(categories)} categories"
        )
    scores, labels = class_logits.softmax(dim=1).max(dim=1)
    kept = ((labels != len(categories)) & (scores > config.object_threshold)).nonzero()[:, 0]
    masks = prediction.mask_logits[image, kept].float()
    if len(kept):
        masks = functional.interpolate(masks[None], placement.canvas, mode="bilinear", align_corners=False)[0]
    masks = masks[:, : placement.resized[0], : placement.resized[1]]
    return panoptic(labels[kept], scores[kept], masks, categories.is_thing, placement.original)


def panoptic(
    labels: Int64[Tensor, " queries"],
    scores: Float[Tensor, " queries"],
    mask_logits: Float[Tensor, "queries height width"],
    is_thing: Sequence[bool],
    size: Size,
) -> Segments:
    """Give each pixel to the query with the largest logit; one with at most 4 pixels loses them.

    Scores play no part in the competition. Queries of one stuff category are one segment: the first takes
    the pixels of the others; these leave then, and their pixels are shared anew among those that are left.

    Source: DETR, Sec. 4.2, and its code (where ids start at 0).
    """
    first = _first_of_stuff(labels.tolist(), is_thing)
    queries = torch.arange(len(labels), device=labels.device)
    numbers = torch.tensor(first, dtype=torch.int64, device=labels.device)
    while len(queries):
        ids = numbers[mask_logits[queries].argmax(dim=0)]
        ids = ids[_nearest(ids.shape[0], size[0])][:, _nearest(ids.shape[1], size[1])]
        large = torch.bincount(ids.flatten(), minlength=len(queries)) > SMALLEST
        if bool(large.all()):
            layer = (ids + 1).to(torch.int16)
            break
        queries = queries[large]
        numbers = torch.arange(len(queries), device=labels.device)  # stuff is one already
    else:
        layer = torch.zeros(size, dtype=torch.int16, device=labels.device)
    return Segments(
        layers=layer[None],
        labels=labels[queries],
        scores=scores[queries],
        is_crowd=torch.zeros(len(queries), dtype=torch.bool, device=labels.device),
    )


def _nearest(given: int, wanted: int) -> Int64[Tensor, " wanted"]:
    """Return for each of the wanted rows the given one whose middle is nearest, by a running sum of steps.

    Where a middle falls between two rows, rounding decides; the sum rounds as Pillow does, which the original
    resizes with.
    """
    step = given / wanted
    places = torch.full((wanted,), step, dtype=torch.float64)
    places[0] = step / 2
    return places.cumsum(0).long().clamp(max=given - 1)


def _first_of_stuff(labels: list[int], is_thing: Sequence[bool]) -> list[int]:
    """Return for each query itself, or the first one of the same stuff category."""
    return [index if is_thing[label] else labels.index(label) for index, label in enumerate(labels)]

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

SMALLEST = 4  # pixels: panoptic segments of at most this area are dropped


def postprocess_boxes(
    prediction: BoxPrediction | BoxMaskPrediction, image: int, placement: Placement, threshold: float
) -> Detections:
    """Return the boxes of one image (xyxy, in pixels of its file) with scores from `threshold`, best first.

    Each query gives one box: its best class except no-object, with the probability of it as score. Boxes may
    extend beyond the image.

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
    """Return the panoptic segments of one image at the size of its file, each pixel in one of them.

    Queries with a score above `config.object_threshold` compete for the pixels; if there are none, all pixels
    are void. The padding of the canvas is cut off first.

    Raises:
        ValueError: the prediction has another number of classes than `categories`.

    Source: DETR (2005.12872), Sec. 4.2, and its code.
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
    """Assign each pixel to the query with the largest logit; segments of at most 4 pixels are dropped.

    Scores do not influence the assignment. Of several queries of one stuff category, the first gets the
    pixels and the others are dropped. After queries are dropped, all pixels are assigned again among the
    remaining ones, until none is dropped. `size` is that of the result.

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
        numbers = torch.arange(len(queries), device=labels.device)  # stuff is merged already
    else:
        layer = torch.zeros(size, dtype=torch.int16, device=labels.device)
    return Segments(
        layers=layer[None],
        labels=labels[queries],
        scores=scores[queries],
        is_crowd=torch.zeros(len(queries), dtype=torch.bool, device=labels.device),
    )


def _nearest(given: int, wanted: int) -> Int64[Tensor, " wanted"]:
    """Return the indices of the nearest of `given` rows for each of `wanted` rows, as Pillow computes them.

    The original resizes with Pillow, whose running sum of steps decides by its rounding where the centre of a
    row falls between two rows.
    """
    step = given / wanted
    places = torch.full((wanted,), step, dtype=torch.float64)
    places[0] = step / 2
    return places.cumsum(0).long().clamp(max=given - 1)


def _first_of_stuff(labels: list[int], is_thing: Sequence[bool]) -> list[int]:
    """Return the index of each query or, for stuff, of the first query of the same category."""
    return [index if is_thing[label] else labels.index(label) for index, label in enumerate(labels)]

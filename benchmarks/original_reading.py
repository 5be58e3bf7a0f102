"""Post-processing as the original does it, written plainly: all queries at the size of the picture.

Source: the steps of `maskformer_model.py` in the original release (facts, not code): masks are resized to the
canvas, cropped, resized to the picture; then each task reads them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from unimask.structures import Placement


def restored(mask_logits: Tensor, placement: Placement) -> Tensor:
    """(queries, height, width) at the size of the picture."""
    on_canvas = functional.interpolate(
        mask_logits[None], placement.canvas, mode="bilinear", align_corners=False
    )
    cropped = on_canvas[:, :, : placement.resized[0], : placement.resized[1]]
    return functional.interpolate(cropped, placement.original, mode="bilinear", align_corners=False)[0]


def panoptic(
    class_logits: Tensor,
    mask_logits: Tensor,
    placement: Placement,
    is_thing: Sequence[bool],
    object_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[int]]:
    """A map of segment numbers (0: none), and the label of each segment."""
    scores, labels = class_logits.softmax(-1).max(-1)
    probabilities = restored(mask_logits, placement).sigmoid()
    keep = (labels != len(is_thing)) & (scores > object_threshold)
    scores, labels, probabilities = scores[keep], labels[keep], probabilities[keep]
    segments = torch.zeros(placement.original, dtype=torch.int32, device=mask_logits.device)
    found: list[int] = []
    stuff: dict[int, int] = {}
    if len(scores) == 0:
        return segments, found
    winner = (scores[:, None, None] * probabilities).argmax(0)
    for query, label in enumerate(labels.tolist()):
        own = probabilities[query] >= 0.5
        visible = (winner == query) & own
        own_area, won_area = int(own.sum()), int((winner == query).sum())
        if own_area == 0 or won_area == 0 or int(visible.sum()) == 0:
            continue
        if won_area / own_area < overlap_threshold:
            continue
        if label in stuff:
            segments[visible] = stuff[label]
            continue
        found.append(label)
        segments[visible] = len(found)
        if not is_thing[label]:
            stuff[label] = len(found)
    return segments, found


def instance(
    class_logits: Tensor, mask_logits: Tensor, placement: Placement, is_thing: Sequence[bool], most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks, labels and scores of the best pairs of a query and a thing."""
    classes = len(is_thing)
    masks = restored(mask_logits, placement)
    scores, pairs = class_logits.softmax(-1)[:, :-1].flatten().topk(most, sorted=False)
    labels = pairs % classes
    chosen = masks[pairs // classes]
    keep = torch.tensor(list(is_thing), device=labels.device)[labels]
    scores, labels, chosen = scores[keep], labels[keep], chosen[keep]
    inside = (chosen > 0).float()
    quality = (chosen.sigmoid().flatten(1) * inside.flatten(1)).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    return inside, labels, scores * quality


def semantic(class_logits: Tensor, mask_logits: Tensor, placement: Placement) -> Tensor:
    """A map of labels."""
    masks = restored(mask_logits, placement)
    values = torch.einsum("qc,qhw->chw", class_logits.softmax(-1)[:, :-1], masks.sigmoid())
    return values.argmax(0)

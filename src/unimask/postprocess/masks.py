"""Postprocessing of masks: segments at the size of the image (the semantic ones are in `semantic.py`).

Results equal those of the original code (facebookresearch/Mask2Former, `maskformer_model.py`) to the pixel,
but are computed differently. Masks stay factorised: logits are computed for one window of the image, or for
the window that one query covers, and never for all queries on the whole image at once.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int16, Int64
from torch import Tensor

from unimask.config.images import PostprocessConfig
from unimask.config.tasks import Task
from unimask.ops.dispatch import in_small_parts, look_up
from unimask.ops.id_maps import LayerPacker
from unimask.ops.windows import BLOCK, ELEMENTS_AT_ONCE, Windows, restoration, side_for
from unimask.postprocess.semantic import semantic
from unimask.structures import Categories, MaskPrediction, Placement, Segments

CONTENDED_SIDE = 128  # of the square windows in which queries compete; few queries compete in a small one


def postprocess_masks(
    prediction: MaskPrediction,
    image: int,
    placement: Placement,
    categories: Categories,
    config: PostprocessConfig,
    task: Task,
) -> Segments:
    """Return the segments of one image of the batch, at the size of its file, from the final prediction.

    Computed in float32, also under mixed precision. An instance result has things only: pairs of a query and
    a stuff category are dropped after the best pairs are selected, as in the original.

    Raises:
        ValueError: the prediction has another number of classes than `categories`.
    """
    class_logits = prediction.class_logits[-1, image].float()
    if class_logits.shape[1] != len(categories) + 1:
        raise ValueError(
            f"{class_logits.shape[1] - 1} classes predicted, but there are {len(categories)} categories"
        )
    embeddings = prediction.mask_embeddings[-1, image].float()
    features = prediction.features()[image].float()
    with torch.inference_mode(), torch.autocast(features.device.type, enabled=False):
        if task == "semantic":
            return semantic(
                class_logits,
                embeddings,
                features,
                placement,
                resize_classes=config.resize_classes,
                per_pixel=prediction.per_pixel,
            )
        if config.duplicate_iou < 1:
            one_each = distinct(class_logits, embeddings, features, config.duplicate_iou)
            class_logits, embeddings = class_logits[one_each], embeddings[one_each]
        if task == "panoptic":
            return panoptic(
                class_logits,
                embeddings,
                features,
                placement,
                categories.is_thing,
                object_threshold=config.object_threshold,
                overlap_threshold=config.overlap_threshold,
                fill=config.fill,
            )
        return instance(
            class_logits,
            embeddings,
            features,
            placement,
            categories.is_thing,
            max_instances=config.max_instances,
            threshold=config.instance_threshold,
        )


def distinct(
    class_logits: Float[Tensor, "queries classes_and_none"],
    mask_embeddings: Float[Tensor, "queries channels"],
    mask_features: Float[Tensor, "channels map_height map_width"],
    largest_iou: float,
) -> Int64[Tensor, " kept"]:
    """Return the indices of the queries, in order, without duplicates of a better query of the same class.

    A query duplicates another if the IoU of their masks (probability above 0.5, at stride 4) is larger than
    `largest_iou`; the better one has the larger product of class and mean mask probability. Queries with an
    empty mask duplicate nothing.

    Source: greedy non-maximum suppression, on masks. The papers do not use it: a fully trained model has few
    duplicates. In a model trained for less, the panoptic overlap rule drops both of two equal masks.
    """
    scores, labels = class_logits.softmax(dim=1)[:, :-1].max(dim=1)
    logits = (mask_embeddings @ mask_features.flatten(1)).float()
    masks = (logits > 0).float()
    areas = masks.sum(dim=1)
    scores = scores * (logits.sigmoid() * masks).sum(dim=1) / areas.clamp(min=1)
    both = masks @ masks.T
    iou = both / (areas[:, None] + areas[None] - both).clamp(min=1)
    repeats = ((iou > largest_iou) & (labels[:, None] == labels[None])).cpu()
    kept = torch.zeros(len(scores), dtype=torch.bool)
    for query in scores.argsort(descending=True, stable=True).tolist():
        kept[query] = not bool((repeats[query] & kept).any())
    return kept.nonzero()[:, 0].to(class_logits.device)


def panoptic(
    class_logits: Float[Tensor, "queries classes_and_none"],
    mask_embeddings: Float[Tensor, "queries channels"],
    mask_features: Float[Tensor, "channels map_height map_width"],
    placement: Placement,
    is_thing: Sequence[bool],
    *,
    object_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
    fill: Literal["mask", "winner"] = "mask",
) -> Segments:
    """Return segments that do not overlap, in the order of their queries; pixels in none are void (0).

    A query takes part if no-object is not its best class and its score is above `object_threshold`. A pixel
    is assigned to the query with the largest score times mask probability, and stays void if this mask
    probability is below 0.5. A query is dropped, and its pixels stay void, if it is assigned fewer pixels
    (including those below 0.5) than `overlap_threshold` times the area of its own mask. Queries of one stuff
    category form one segment with the highest of their scores. With `fill` = "winner" a segment has all
    pixels assigned to its query, as in MaskFormer; only those of dropped queries are void.

    Source: MaskFormer (2107.06278), Sec. 3.4; that pixels below 0.5 count as assigned is only in the code.
    """
    scores, labels = class_logits.softmax(dim=1).max(dim=1)
    queries = ((labels != len(is_thing)) & (scores > object_threshold)).nonzero()[:, 0]
    scores, labels, embeddings = scores[queries], labels[queries], mask_embeddings[queries]
    if len(queries) == 0:
        empty = torch.zeros((1, *placement.original), dtype=torch.int16, device=class_logits.device)
        return _segments(empty, labels, scores)
    winner, inside, own_areas = _compete(scores, embeddings, mask_features, placement)
    if fill == "winner":
        inside = torch.ones_like(inside)
    won = torch.bincount(winner.flatten(), minlength=len(queries))
    visible = torch.bincount(winner[inside], minlength=len(queries))
    kept = (own_areas > 0) & (visible > 0) & (won / own_areas.clamp_min(1) >= overlap_threshold)
    numbers, segment_labels, segment_scores = _number(
        kept.tolist(), labels.tolist(), scores.tolist(), is_thing
    )
    table = torch.tensor(numbers, dtype=torch.int16, device=winner.device)
    layer = look_up(winner, table).masked_fill_(inside.logical_not_(), 0)
    return _segments(layer[None], labels.new_tensor(segment_labels), scores.new_tensor(segment_scores))


def _compete(
    scores: Float[Tensor, " queries"],
    embeddings: Float[Tensor, "queries channels"],
    features: Float[Tensor, "channels map_height map_width"],
    placement: Placement,
) -> tuple[Int16[Tensor, "height width"], Bool[Tensor, "height width"], Int64[Tensor, " queries"]]:
    """Return the winner of each pixel, whether its mask contains the pixel, and the mask area of each query.

    The winner is the query with the largest score times mask probability; areas are in pixels of the image.
    """
    windows = restoration(placement, (features.shape[1], features.shape[2]))
    winner = torch.empty(placement.original, dtype=torch.int16, device=features.device)
    inside = torch.empty(placement.original, dtype=torch.bool, device=features.device)
    own_areas = torch.zeros(len(scores), dtype=torch.int64, device=features.device)
    side = min(side_for(len(scores)), CONTENDED_SIDE) if in_small_parts(features) else side_for(len(scores))
    for rows, columns in windows.tiles(side):
        cells = torch.einsum("qc,chw->qhw", embeddings, features[:, *windows.source(rows, columns)])
        queries = _contenders(scores, cells)
        probabilities = windows.resize(cells[queries], rows, columns).sigmoid_()
        masks = probabilities >= 0.5
        best = (scores[queries, None, None] * probabilities).max(dim=0).indices  # much faster than argmax
        winner[rows, columns] = queries.short()[best]
        inside[rows, columns] = masks.gather(0, best[None])[0]
        areas = masks.float().sum(dim=(1, 2)).long()  # exact: a window has fewer than 2^24 pixels
        own_areas.index_add_(0, queries, areas)
    return winner, inside, own_areas


def _contenders(
    scores: Float[Tensor, " queries"], cells: Float[Tensor, "queries rows columns"]
) -> Int64[Tensor, " contenders"]:
    """Return the queries that may win a pixel of these cells, or whose mask may contain one; at least one.

    Resized values stay within the range of the cells. So a query can be ignored if its largest logit is below
    0 and its largest score is below the smallest score of another query; the margins allow for rounding.
    """
    lowest, highest = cells.amin(dim=(1, 2)), cells.amax(dim=(1, 2))
    everywhere = (scores * lowest.sigmoid()).max()
    somewhere = scores * highest.sigmoid()
    return ((highest > -1e-3) | (somewhere * (1 + 1e-4) >= everywhere)).nonzero()[:, 0]


def _number(
    kept: list[bool], labels: list[int], scores: list[float], is_thing: Sequence[bool]
) -> tuple[list[int], list[int], list[float]]:
    """Return the number of each query's segment (0: none), and the label and score of each segment."""
    numbers: list[int] = []
    segment_labels: list[int] = []
    segment_scores: list[float] = []
    stuff: dict[int, int] = {}
    for keep, label, score in zip(kept, labels, scores, strict=True):
        if not keep:
            numbers.append(0)
        elif label in stuff:
            numbers.append(stuff[label])
            segment_scores[stuff[label] - 1] = max(segment_scores[stuff[label] - 1], score)
        else:
            segment_labels.append(label)
            segment_scores.append(score)
            numbers.append(len(segment_labels))
            if not is_thing[label]:
                stuff[label] = len(segment_labels)
    return numbers, segment_labels, segment_scores


def instance(
    class_logits: Float[Tensor, "queries classes_and_none"],
    mask_embeddings: Float[Tensor, "queries channels"],
    mask_features: Float[Tensor, "channels map_height map_width"],
    placement: Placement,
    is_thing: Sequence[bool],
    *,
    max_instances: int = 100,
    threshold: float = 0.0,
) -> Segments:
    """Return things, which may overlap, by falling score, packed greedily into few layers.

    The best `max_instances` pairs of a query and a category are selected (all if there are fewer), then those
    of stuff are dropped. The mask is where the logit is above 0; the score is the probability of the category
    times the mean mask probability over the mask. Instances with a score below `threshold` are left out. A
    mask may be empty; its score is 0.

    Source: the original code (`instance_inference`); the papers do not say how instances are scored.
    """
    classes = len(is_thing)
    probabilities = class_logits.softmax(dim=1)[:, :-1].flatten()
    pair_scores, pairs = probabilities.topk(min(max_instances, len(probabilities)))
    things = torch.tensor(list(is_thing), device=pairs.device)
    # The mean of a probability is at most 1, so a pair that is below the threshold here stays below it.
    candidates = things[pairs % classes] & (pair_scores >= threshold)
    pair_scores, labels = pair_scores[candidates], (pairs % classes)[candidates]
    queries, which = (pairs // classes)[candidates].unique(return_inverse=True)
    windows = restoration(placement, (mask_features.shape[1], mask_features.shape[2]))
    found = [
        (*_foreground(logits, windows, window), window)
        for logits, window in _foreground_windows(mask_embeddings[queries], mask_features, windows)
    ]
    means = torch.stack([mean for _, mean, _ in found]) if found else pair_scores[:0]
    scores = pair_scores * means[which]
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= threshold]
    packer = LayerPacker(placement.original, mask_features.device)
    next_layer = [0] * len(found)  # pairs of one query have the same pixels
    last = {query: number for number, query in enumerate(which[order].tolist(), 1)}
    left = {query: [(found[query][0], found[query][2])] for query in last if means[query] > 0}
    del found
    for number, query in enumerate(which[order].tolist(), 1):
        if query in left:
            next_layer[query] = packer.add(number, left[query], next_layer[query]) + 1
            if number == last[query]:
                del left[query]
    return _segments(packer.layers(), labels[order], scores[order])


def _foreground_windows(
    embeddings: Float[Tensor, "queries channels"],
    features: Float[Tensor, "channels map_height map_width"],
    windows: Windows,
) -> Iterator[tuple[Float[Tensor, "map_height map_width"], tuple[slice, slice]]]:
    """Yield the mask logits of each query, and the window of the image outside of which none is above 0.

    Bilinear resizing produces no value larger than all of its inputs, so only pixels computed from a positive
    cell of the map can be positive.
    """
    cells = features.shape[1] * features.shape[2]
    for chunk in embeddings.split(max(1, ELEMENTS_AT_ONCE // cells)):
        logits = (chunk @ features.flatten(1)).unflatten(1, features.shape[1:])
        positive = logits > 0
        row_ranges, column_ranges = _ranges(positive.any(dim=2)), _ranges(positive.any(dim=1))
        for one, rows, columns in zip(logits, row_ranges, column_ranges, strict=True):
            yield one, windows.reach(rows, columns)


def _ranges(occupied: Bool[Tensor, "queries cells"]) -> list[slice]:
    """Return the slice from the first to the last occupied cell of each query, empty if there is none."""
    count = occupied.shape[1]
    start = occupied.int().argmax(dim=1)
    stop = count - occupied.flip(1).int().argmax(dim=1)
    stop = torch.where(occupied.any(dim=1), stop, start)
    return [slice(low, high) for low, high in zip(start.tolist(), stop.tolist(), strict=True)]


def _foreground(
    logits: Float[Tensor, "map_height map_width"], windows: Windows, window: tuple[slice, slice]
) -> tuple[Bool[Tensor, "rows columns"], Float[Tensor, ""]]:
    """Return the mask of one query in its window, and the mean probability over the mask (0 if empty)."""
    rows, columns = window
    height, width = rows.stop - rows.start, columns.stop - columns.start
    mask = torch.empty((height, width), dtype=torch.bool, device=logits.device)
    probability, area = logits.new_zeros(()), logits.new_zeros(())
    if mask.numel() == 0:
        return mask, probability
    at_once = BLOCK if in_small_parts(logits) else height
    for start in range(rows.start, rows.stop, at_once):
        strip = slice(start, min(start + at_once, rows.stop))
        values = windows.resize(logits[None][:, *windows.source(strip, columns)], strip, columns)[0]
        inside = mask[strip.start - rows.start : strip.stop - rows.start]
        torch.gt(values, 0, out=inside)
        area += torch.count_nonzero(inside)
        probability += values.sigmoid_().where(inside, 0).sum()
    return mask, probability / (area + 1e-6)


def _segments(
    layers: Int16[Tensor, "layers height width"],
    labels: Int64[Tensor, " segments"],
    scores: Float[Tensor, " segments"],
) -> Segments:
    return Segments(
        layers=layers, labels=labels, scores=scores, is_crowd=torch.zeros_like(labels, dtype=torch.bool)
    )

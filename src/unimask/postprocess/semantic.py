"""Semantic segments from one prediction or several: each pixel has the category with the largest value.

The value of a category at a pixel is the sum over queries of class probability times mask probability; in
per-pixel classification that is the probability of the category. Values are computed for one window of the
image at a time (`ops/windows.py`).

Source: MaskFormer (2107.06278), Sec. 3.4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unimask.ops.windows import Windows, from_canvas, restoration, side_for, to_canvas
from unimask.structures import MaskPrediction, Placement, Segments, Size

Values = Callable[[slice, slice], Tensor]
"""Returns the values (categories, rows, columns) in a window (rows, columns) of an image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedPrediction:
    """The prediction of a model for a square window of an image, and the position of the window."""

    prediction: MaskPrediction  # a batch of one
    window: tuple[slice, slice]  # rows and columns of the image, at the upper left of the canvas
    canvas: Size


def semantic(
    class_logits: Float[Tensor, "queries classes_and_none"],
    mask_embeddings: Float[Tensor, "queries channels"],
    mask_features: Float[Tensor, "channels map_height map_width"],
    placement: Placement,
    *,
    resize_classes: bool = False,
    per_pixel: bool = False,
) -> Segments:
    """Return one segment per category that has the largest value at some pixel, by rising label; no void.

    The score of a segment is the share of its category in the sum of all values, averaged over its pixels.

    Mask logits are resized to the image. With `resize_classes` the values of the categories on the canvas
    are resized instead, as the original does for models that only do semantic segmentation
    (`config.PostprocessConfig.resize_classes`). `per_pixel`: see `structures.MaskPrediction`.

    Source: MaskFormer (2107.06278), Sec. 3.4; the score is not from the paper.
    """
    size = mask_features.shape[1], mask_features.shape[2]
    parts = class_logits, mask_embeddings, mask_features
    if resize_classes:
        restored = from_canvas(placement)
        values = _resized(_values(*parts, to_canvas(placement, size), per_pixel), restored)
    else:
        restored = restoration(placement, size)
        values = _values(*parts, restored, per_pixel)
    return _best(values, restored, len(class_logits), class_logits.shape[1] - 1, class_logits.device)


@torch.inference_mode()
def semantic_of_windows(windows: Sequence[PlacedPrediction], frame: Placement) -> Segments:
    """Return the semantic segments of an image from the predictions for windows that cover it.

    The windows lie on the image resized to `frame.resized`. Values are averaged there over all windows that
    contain a pixel, then resized to the original size; each pixel has the category with the largest value.

    Source: the original code of EoMT (`to_per_pixel_logits_semantic`, `revert_window_logits_semantic`).
    """
    first = windows[0].prediction.class_logits
    queries, classes = first.shape[2], first.shape[3] - 1
    averaged = _averaged([_placed_values(one) for one in windows], classes, first.device)
    restored = from_canvas(frame)
    with torch.autocast(first.device.type, enabled=False):
        return _best(_resized(averaged, restored), restored, queries, classes, first.device)


def _values(
    class_logits: Float[Tensor, "queries classes_and_none"],
    mask_embeddings: Float[Tensor, "queries channels"],
    mask_features: Float[Tensor, "channels map_height map_width"],
    windows: Windows,
    per_pixel: bool,
) -> Values:
    """Return the values of one prediction, whose masks are resized by `windows`."""
    probabilities = class_logits.softmax(dim=1)[:, :-1]
    categories = probabilities.shape[1]

    def values(rows: slice, columns: slice) -> Tensor:
        cells = torch.einsum("qc,chw->qhw", mask_embeddings, mask_features[:, *windows.source(rows, columns)])
        masks = _mask_probabilities(windows.resize(cells, rows, columns), categories, per_pixel)
        return torch.einsum("qk,qhw->khw", probabilities, masks)

    return values


def _mask_probabilities(
    logits: Float[Tensor, "queries *map"], categories: int, per_pixel: bool
) -> Float[Tensor, "queries *map"]:
    """Return the probability of each query at each pixel from the mask logits of all queries.

    In per-pixel classification there is a query for each category; queries of several versions of an image
    lie one version after the other (`inference.tta`).
    """
    if per_pixel:
        return logits.unflatten(0, (-1, categories)).softmax(dim=1).flatten(0, 1)
    return logits.sigmoid()


def _placed_values(one: PlacedPrediction) -> tuple[tuple[slice, slice], Values]:
    """Return the window of a prediction, and the values in it."""
    features = one.prediction.features()[0].float()
    whole = Placement(original=one.canvas, resized=one.canvas, canvas=one.canvas)
    windows = to_canvas(whole, (features.shape[1], features.shape[2]))
    class_logits = one.prediction.class_logits[-1, 0].float()
    embeddings = one.prediction.mask_embeddings[-1, 0].float()
    return one.window, _values(class_logits, embeddings, features, windows, one.prediction.per_pixel)


def _resized(values: Values, windows: Windows) -> Values:
    """Return values resized by `windows`."""
    return lambda rows, columns: windows.resize(values(*windows.source(rows, columns)), rows, columns)


def _averaged(
    parts: Sequence[tuple[tuple[slice, slice], Values]], classes: int, device: torch.device
) -> Values:
    """Return the mean of the values of all parts that contain a pixel."""

    def values(rows: slice, columns: slice) -> Tensor:
        shape = rows.stop - rows.start, columns.stop - columns.start
        total = torch.zeros((classes, *shape), device=device)
        count = torch.zeros(shape, device=device)
        for (part_rows, part_columns), part in parts:
            mine, here = _common(part_rows, rows)
            my_columns, here_columns = _common(part_columns, columns)
            if mine.start < mine.stop and my_columns.start < my_columns.stop:
                total[:, here, here_columns] += part(mine, my_columns)
                count[here, here_columns] += 1
        return total / count

    return values


def _common(part: slice, asked: slice) -> tuple[slice, slice]:
    """Return the intersection of two ranges, relative to the start of each."""
    start, stop = max(part.start, asked.start), min(part.stop, asked.stop)
    return slice(start - part.start, stop - part.start), slice(start - asked.start, stop - asked.start)


def _best(values: Values, restored: Windows, queries: int, classes: int, device: torch.device) -> Segments:
    """Return the segments of the categories with the largest values, computed one window at a time."""
    best = torch.empty(restored.size, dtype=torch.int64, device=device)
    shares = torch.zeros(classes, dtype=torch.float32, device=device)
    for rows, columns in restored.tiles(side_for(queries + classes)):
        here = values(rows, columns)
        highest, labels = here.max(dim=0)
        best[rows, columns] = labels
        share = highest / here.sum(dim=0).clamp_min(torch.finfo(here.dtype).tiny)
        small_sum = torch.zeros_like(shares).index_add_(0, labels.flatten(), share.flatten())
        shares += small_sum  # sums of each window first, for accuracy
    areas = torch.bincount(best.flatten(), minlength=classes)
    present = areas.nonzero()[:, 0]
    numbers = torch.zeros(classes, dtype=torch.int16, device=device)
    numbers[present] = torch.arange(1, len(present) + 1, dtype=torch.int16, device=device)
    return Segments(
        layers=numbers[best][None],
        labels=present,
        scores=(shares[present] / areas[present]).float(),
        is_crowd=torch.zeros_like(present, dtype=torch.bool),
    )

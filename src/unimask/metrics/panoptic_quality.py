"""Panoptic quality (PQ) of thing and stuff segments, with its factors SQ and RQ."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimask.metrics.overlaps import (
    NOT_MEASURED,
    Integers,
    Overlaps,
    as_numbers,
    check_pair,
    check_same_categories,
    flat_map,
    joint_histogram,
)
from unimask.structures import Categories, Segments


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Panoptic quality and its two factors, each in [0, 1]; all three are -1 where `classes` is 0."""

    panoptic: float  # PQ = SQ x RQ for one class; for a group the mean of its classes
    segmentation: float  # SQ, the mean IoU of matched segments; 0 where none is matched
    recognition: float  # RQ, an F1 score
    classes: int  # number of classes with a segment in the ground truth or a counted one in the results


@dataclass(frozen=True, kw_only=True)
class PanopticQualityValues:
    """The values of `PanopticQuality`; `per_class` has one entry per category, in their order."""

    all: Quality
    things: Quality
    stuff: Quality
    per_class: tuple[Quality, ...]

    def as_dict(self) -> dict[str, float]:
        """Return PQ, SQ and RQ of all classes, of things (`PQ_things`) and of stuff; -1 if there are none."""
        values = {}
        for suffix, group in (("", self.all), ("_things", self.things), ("_stuff", self.stuff)):
            values[f"PQ{suffix}"] = group.panoptic
            values[f"SQ{suffix}"] = group.segmentation
            values[f"RQ{suffix}"] = group.recognition
        return values

    def by_class(self) -> dict[str, tuple[float, ...]]:
        """Return `PQ`, `SQ` and `RQ` of each category, in the order of the categories."""
        return {
            "PQ": tuple(quality.panoptic for quality in self.per_class),
            "SQ": tuple(quality.segmentation for quality in self.per_class),
            "RQ": tuple(quality.recognition for quality in self.per_class),
        }


class PanopticQuality:
    """Accumulates panoptic quality over images.

    The rules are those of COCO's evaluation, also where the paper gives none:
    - a predicted segment matches a true segment of its class, no crowd, at an IoU strictly above 0.5;
      predicted pixels that are void in the ground truth (id 0) do not count in the union;
    - an unmatched prediction is not counted if more than half of it is void, crowd of its class, or both
      together; only the last crowd segment of a class is considered;
    - an unmatched true segment is a miss even if it has no pixels; a crowd segment never is;
    - the value of a group is the mean over its classes that have a segment.

    A predicted segment without pixels is ignored.

    Source: Panoptic Segmentation (arXiv 1801.00868), Sec. 4.1, Eq. 1-2; panopticapi's code for the rest.
    """

    def __init__(self, categories: Categories) -> None:
        self.categories = categories
        self.iou: NDArray[np.float64] = np.zeros(len(categories))  # summed over matches, per class
        self.matched: Integers = np.zeros(len(categories), dtype=np.int64)
        self.wrong: Integers = np.zeros(len(categories), dtype=np.int64)  # false positives
        self.missed: Integers = np.zeros(len(categories), dtype=np.int64)  # false negatives

    def update(self, result: Segments, truth: Segments) -> None:
        """Add one image.

        Raises:
            ValueError: sizes differ, a label or an id is out of range, or segments overlap.
        """
        check_pair(result, truth, self.categories)
        classes = len(self.categories)
        truth_labels, result_labels = as_numbers(truth.labels), as_numbers(result.labels)
        crowd = truth.is_crowd.cpu().numpy()
        areas = as_numbers(result.areas())
        overlaps = joint_histogram(flat_map(truth), flat_map(result))
        excused = _void(overlaps, len(result))
        pairs = _matches(overlaps, excused, result, truth)

        result_matched = np.zeros(len(result), dtype=bool)
        result_matched[pairs.result] = True
        truth_matched = np.zeros(len(truth), dtype=bool)
        truth_matched[pairs.truth] = True
        excused = excused + _crowd_of_class(overlaps, truth_labels, result_labels, crowd)
        counted = ~result_matched & (areas > 0) & (2 * excused <= areas)

        matched_labels = truth_labels[pairs.truth]
        self.iou += np.bincount(matched_labels, weights=pairs.iou, minlength=classes)
        self.matched += np.bincount(matched_labels, minlength=classes)
        self.wrong += np.bincount(result_labels[counted], minlength=classes)
        self.missed += np.bincount(truth_labels[~truth_matched & ~crowd], minlength=classes)

    def merge(self, other: "PanopticQuality") -> None:
        """Add the counts of another accumulator.

        Raises:
            ValueError: its categories differ.
        """
        check_same_categories(self.categories, other.categories)
        self.iou += other.iou
        self.matched += other.matched
        self.wrong += other.wrong
        self.missed += other.missed

    def compute(self) -> PanopticQualityValues:
        """Return the values over all images so far."""
        per_class = tuple(self._quality(label) for label in range(len(self.categories)))
        is_thing = self.categories.is_thing
        return PanopticQualityValues(
            all=_mean(per_class),
            things=_mean(tuple(one for one, thing in zip(per_class, is_thing) if thing)),
            stuff=_mean(tuple(one for one, thing in zip(per_class, is_thing) if not thing)),
            per_class=per_class,
        )

    def _quality(self, label: int) -> Quality:
        iou, matched = float(self.iou[label]), int(self.matched[label])
        below = matched + 0.5 * int(self.wrong[label]) + 0.5 * int(self.missed[label])
        if below == 0:
            return _NO_QUALITY
        segmentation = iou / matched if matched else 0.0
        return Quality(
            panoptic=iou / below, segmentation=segmentation, recognition=matched / below, classes=1
        )


_NO_QUALITY = Quality(panoptic=NOT_MEASURED, segmentation=NOT_MEASURED, recognition=NOT_MEASURED, classes=0)


def _mean(qualities: tuple[Quality, ...]) -> Quality:
    present = [quality for quality in qualities if quality.classes]
    if not present:
        return _NO_QUALITY
    return Quality(
        panoptic=sum(quality.panoptic for quality in present) / len(present),
        segmentation=sum(quality.segmentation for quality in present) / len(present),
        recognition=sum(quality.recognition for quality in present) / len(present),
        classes=len(present),
    )


@dataclass(frozen=True, kw_only=True)
class _SegmentMatches:
    """Matched true and predicted segments (indices from 0), and their IoU."""

    truth: Integers
    result: Integers
    iou: NDArray[np.float64]


def _void(overlaps: Overlaps, results: int) -> Integers:
    """Return how many pixels of each result are void in the truth."""
    pixels = np.zeros(results + 1, dtype=np.int64)
    in_void = overlaps.truth == 0
    pixels[overlaps.result[in_void]] = overlaps.pixels[in_void]
    return pixels[1:]


def _crowd_of_class(
    overlaps: Overlaps, truth_labels: Integers, result_labels: Integers, crowd: NDArray[np.bool_]
) -> Integers:
    """Return how many pixels of each result lie in the last crowd segment of its class."""
    last_crowd = {int(truth_labels[index]): int(index) + 1 for index in np.flatnonzero(crowd)}
    wanted = np.array([last_crowd.get(int(label), -1) for label in result_labels], dtype=np.int64)
    pixels = np.zeros(len(result_labels), dtype=np.int64)
    real = overlaps.result > 0
    result = overlaps.result[real] - 1
    inside = overlaps.truth[real] == wanted[result]
    pixels[result[inside]] = overlaps.pixels[real][inside]
    return pixels


def _matches(overlaps: Overlaps, void: Integers, result: Segments, truth: Segments) -> _SegmentMatches:
    real = (overlaps.truth > 0) & (overlaps.result > 0)
    truth_index, result_index = overlaps.truth[real] - 1, overlaps.result[real] - 1
    shared = overlaps.pixels[real]
    union = (
        as_numbers(truth.areas())[truth_index] + (as_numbers(result.areas()) - void)[result_index] - shared
    )
    same_class = as_numbers(truth.labels)[truth_index] == as_numbers(result.labels)[result_index]
    matched = same_class & ~truth.is_crowd.cpu().numpy()[truth_index] & (2 * shared > union)
    return _SegmentMatches(
        truth=truth_index[matched], result=result_index[matched], iou=shared[matched] / union[matched]
    )

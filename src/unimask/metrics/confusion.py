"""Confusion of true and predicted categories, with misses and false positives, in total and by size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from unimask.metrics.matched_precision import partners
from unimask.metrics.overlaps import Integers, as_numbers, check_pair, check_same_categories, segment_overlaps
from unimask.ops.boxes import box_areas, box_iou
from unimask.structures import Categories, Detections, Segments

Unit = Literal["pixels", "segments", "boxes"]
SIZES = {"small": 32**2, "medium": 96**2, "large": np.inf}
"""Upper limit of the area of each size, in pixels, as in COCO."""
OUTCOMES = ("right", "confused", "missed", "false")
MATCH = 0.5  # IoU from which two segments or boxes match

Same = TypeVar("Same")
Areas = NDArray[np.float64]
Pairs = tuple[Integers, Integers]  # indices of true and of predicted objects


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """The confusion matrix of the categories, and the outcomes by size.

    `matrix[t][f]` counts pixels, segments or boxes of category t that were predicted as f. The last column
    counts misses, the last row false positives (for pixels always 0: they do not count where the ground truth
    is void). `by_size` counts the outcomes right, confused (predicted as another category), missed and false;
    it is empty for pixels.
    """

    unit: Unit
    names: tuple[str, ...]
    matrix: tuple[tuple[int, ...], ...]  # one more row and column than names
    by_size: Mapping[str, Mapping[str, int]]  # size (small, medium, large) -> outcome -> count

    def most_confused(self, most: int) -> list[tuple[str, str, int]]:
        """Return the most frequent errors as (true, predicted, count); "" stands for no category."""
        counts = np.array(self.matrix)
        np.fill_diagonal(counts, 0)
        names = (*self.names, "")
        best = np.argsort(-counts, axis=None, kind="stable")[:most]
        places = [divmod(int(place), len(names)) for place in best]
        return [(names[t], names[f], int(counts[t, f])) for t, f in places if counts[t, f]]


@runtime_checkable
class ConfusionState(Protocol):
    """Accumulates the confusion over images."""

    def count(self, result: Any, truth: Any) -> float:
        """Add one image; return the quality of this image alone, from 0 to 1."""

    def merge(self: Same, other: Same) -> None:
        """Add the counts of another accumulator."""

    def table(self) -> Confusion:
        """Return the confusion over all images so far."""


class _Counts:
    """Counts by category and by size."""

    def __init__(self, categories: Categories) -> None:
        self.categories = categories
        side = len(categories) + 1
        self.matrix: Integers = np.zeros((side, side), dtype=np.int64)
        self.sizes: Integers = np.zeros((len(SIZES), len(OUTCOMES)), dtype=np.int64)

    def add(self, matched: "_Matched") -> float:
        """Add an image; return its TP / (TP + FP + FN), 1 if it is empty; a confused object is FP and FN."""
        nothing = len(self.categories)
        found = np.append(matched.found_labels, nothing)[matched.partner]  # partner -1 becomes `nothing`
        np.add.at(self.matrix, (matched.true_labels, found), 1)
        self.matrix[nothing] += np.bincount(matched.found_labels[matched.false], minlength=nothing + 1)
        outcomes = np.where(found == matched.true_labels, 0, np.where(found == nothing, 2, 1))
        np.add.at(self.sizes, (_size_of(matched.true_areas), outcomes), 1)
        self.sizes[:, 3] += np.bincount(_size_of(matched.found_areas[matched.false]), minlength=len(SIZES))
        right, confused = int((outcomes == 0).sum()), int((outcomes == 1).sum())
        everything = len(outcomes) + confused + int(matched.false.sum())
        return right / everything if everything else 1.0

    def merge(self, other: "_Counts") -> None:
        check_same_categories(self.categories, other.categories)
        self.matrix += other.matrix
        self.sizes += other.sizes

    def result(self, unit: Unit) -> Confusion:
        sizes = zip(SIZES, self.sizes.tolist(), strict=True)
        return Confusion(
            unit=unit,
            names=self.categories.names,
            matrix=tuple(map(tuple, self.matrix.tolist())),
            by_size={size: dict(zip(OUTCOMES, counts, strict=True)) for size, counts in sizes},
        )


def _size_of(areas: Areas) -> Integers:
    limits = np.array(list(SIZES.values())[:-1])
    return np.searchsorted(limits, areas, side="right").astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class _Matched:
    """The true objects of an image that count, the prediction matched to each, and the false positives."""

    true_labels: Integers
    true_areas: Areas
    partner: Integers  # of each true object: the index of its prediction, or -1
    found_labels: Integers
    found_areas: Areas
    false: NDArray[np.bool_]


def _match(truth: "_Side", found: "_Side", pairs: Pairs, excused: NDArray[np.bool_]) -> _Matched:
    """Match pairs one to one: first within categories, as the metrics do, then the remaining ones.

    `excused` marks unmatched predictions that do not count as false positives.
    """
    first, second = pairs
    close = truth.counts[first] & found.counts[second]
    first, second = first[close], second[close]
    partner: Integers = np.full(len(truth.labels), -1, dtype=np.int64)
    for allowed in (truth.labels[first] == found.labels[second], np.ones(len(first), dtype=bool)):
        taken = np.zeros(len(found.labels), dtype=bool)
        taken[partner[partner >= 0]] = True
        free = allowed & (partner[first] < 0) & ~taken[second]
        of_found = partners(first[free], second[free], len(truth.labels), len(found.labels))
        partner[of_found[of_found >= 0]] = np.flatnonzero(of_found >= 0)
    false = found.counts & ~excused
    false[partner[partner >= 0]] = False
    return _Matched(
        true_labels=truth.labels[truth.counts],
        true_areas=truth.areas[truth.counts],
        partner=partner[truth.counts],
        found_labels=found.labels,
        found_areas=found.areas,
        false=false,
    )


@dataclass(frozen=True, kw_only=True)
class _Side:
    """The ground truth or the prediction of an image."""

    labels: Integers
    areas: Areas
    counts: NDArray[np.bool_]  # which objects are matched and counted


class SegmentConfusion:
    """Accumulates the confusion of segments over images.

    Segments match one to one at an IoU of at least 0.5 (panoptic: above 0.5), those of the same category
    first. A crowd segment is neither found nor missed, and an unmatched prediction is not counted if more
    than half of it lies in void, in a crowd segment of its category, or in both together. Segments without
    pixels are ignored.

    With `flat` (panoptic), predicted pixels that are void in the ground truth do not count; without it
    (instances, which may overlap) only things are counted, and every pixel counts.
    """

    def __init__(self, categories: Categories, *, flat: bool) -> None:
        self.flat = flat
        self._counts = _Counts(categories)

    def count(self, result: Segments, truth: Segments) -> float:
        """Add one image; return its TP / (TP + FP + FN), 1 if it is empty.

        Raises:
            ValueError: sizes differ, or a label or an id is out of range.
        """
        check_pair(result, truth, self._counts.categories)
        crowd = truth.is_crowd.cpu().numpy()
        sides = self._side(truth, ~crowd), self._side(result, np.ones(len(result), dtype=bool))
        overlaps = segment_overlaps(result, truth)
        first, second = overlaps.truth - 1, overlaps.result - 1
        areas = sides[1].areas
        void: Areas = np.zeros(len(result))
        if self.flat:
            void = areas - np.bincount(second, weights=overlaps.pixels, minlength=len(result))
        union = sides[0].areas[first] + (areas - void)[second] - overlaps.pixels
        in_crowd = crowd[first] & (sides[0].labels[first] == sides[1].labels[second])
        excused = void.copy()
        np.maximum.at(excused, second[in_crowd], (void[second] + overlaps.pixels)[in_crowd])
        iou = overlaps.pixels / union
        close = iou > MATCH if self.flat else iou >= MATCH
        matched = _match(*sides, (first[close], second[close]), 2 * excused > areas)
        return self._counts.add(matched)

    def _side(self, segments: Segments, counts: NDArray[np.bool_]) -> _Side:
        labels, areas = as_numbers(segments.labels), as_numbers(segments.areas()).astype(np.float64)
        is_thing = np.array(self._counts.categories.is_thing, dtype=bool)
        return _Side(labels=labels, areas=areas, counts=counts & (areas > 0) & (is_thing[labels] | self.flat))

    def merge(self, other: "SegmentConfusion") -> None:
        """Add the counts of another accumulator.

        Raises:
            ValueError: its categories differ.
        """
        self._counts.merge(other._counts)

    def table(self) -> Confusion:
        """Return the confusion over all images so far."""
        return self._counts.result("segments")


class BoxConfusion:
    """Accumulates the confusion of boxes over images, by the rules of `SegmentConfusion`.

    An unmatched prediction of which more than half lies in a crowd box of its category is not counted. Areas
    of the ground truth are the stated ones.
    """

    def __init__(self, categories: Categories) -> None:
        self._counts = _Counts(categories)

    def count(self, result: Detections, truth: Detections) -> float:
        """Add one image; return its TP / (TP + FP + FN), 1 if it is empty."""
        is_thing = np.array(self._counts.categories.is_thing, dtype=bool)
        crowd = truth.is_crowd.cpu().numpy()
        labels = as_numbers(truth.labels), as_numbers(result.labels)
        areas = box_areas(result.boxes)
        iou, union = box_iou(truth.boxes[:, None], result.boxes[None])
        inside = (iou * union / areas.clamp(min=torch.finfo(areas.dtype).tiny)).cpu().numpy() > 0.5
        same = labels[0][:, None] == labels[1][None]
        first, second = np.nonzero(iou.cpu().numpy() >= MATCH)
        true_areas: Areas = truth.areas.cpu().numpy().astype(np.float64)
        matched = _match(
            _Side(labels=labels[0], areas=true_areas, counts=is_thing[labels[0]] & ~crowd),
            _Side(labels=labels[1], areas=areas.cpu().numpy().astype(np.float64), counts=is_thing[labels[1]]),
            (first, second),
            (inside & same & crowd[:, None]).any(axis=0),
        )
        return self._counts.add(matched)

    def merge(self, other: "BoxConfusion") -> None:
        """Add the counts of another accumulator.

        Raises:
            ValueError: its categories differ.
        """
        self._counts.merge(other._counts)

    def table(self) -> Confusion:
        """Return the confusion over all images so far."""
        return self._counts.result("boxes")

"""AP(t) = TP / (TP + FP + FN) of instances matched one to one, as in the nuclei literature."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from unimask.metrics.overlaps import (
    NOT_MEASURED,
    Integers,
    as_numbers,
    check_pair,
    check_same_categories,
    segment_overlaps,
)
from unimask.structures import Categories, Segments

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)


@dataclass(frozen=True, kw_only=True)
class MatchedPrecisionValues:
    """The values of `MatchedPrecision`, one per threshold, each in [0, 1]; -1 if there is no instance."""

    thresholds: tuple[float, ...]
    pooled: tuple[float, ...]  # TP, FP and FN summed over all images
    per_image: tuple[float, ...]  # mean over the images with an instance in ground truth or prediction

    def as_dict(self) -> dict[str, float]:
        """Return `AP@0.50` ... (pooled) and `AP_per_image@0.50` ..."""
        pooled = {f"AP@{t:.2f}": value for t, value in zip(self.thresholds, self.pooled)}
        return pooled | {f"AP_per_image@{t:.2f}": value for t, value in zip(self.thresholds, self.per_image)}

    def by_class(self) -> dict[str, tuple[float, ...]]:
        """Return an empty dict, because classes are pooled."""
        return {}


class MatchedPrecision:
    """Accumulates AP(t) of instances over images.

    At each threshold, as many predicted and true instances of the same class with IoU >= t as possible are
    matched one to one; AP(t) = TP / (TP + FP + FN), pooled over images and classes. Only things count. Scores
    and instances without pixels are ignored. A crowd segment is neither found nor missed, and an unmatched
    prediction of which more than half lies in one crowd segment of its class is not counted.

    Source: Cell Detection with Star-convex Polygons (arXiv 1806.03535), Sec. 3; its code pools as here. That
    code breaks ties between equally large matchings by their IoU, which changes no count. In its mean over
    images, an image without any instance on either side counts as 0; here it is left out.
    """

    def __init__(self, categories: Categories) -> None:
        self.categories = categories
        self.matched: Integers = np.zeros(len(THRESHOLDS), dtype=np.int64)
        self.wrong: Integers = np.zeros(len(THRESHOLDS), dtype=np.int64)
        self.missed: Integers = np.zeros(len(THRESHOLDS), dtype=np.int64)
        self.image_sum: NDArray[np.float64] = np.zeros(len(THRESHOLDS))
        self.images: Integers = np.zeros(len(THRESHOLDS), dtype=np.int64)  # those with a counted instance

    def update(self, result: Segments, truth: Segments) -> None:
        """Add one image.

        Raises:
            ValueError: sizes differ, or a label or an id is out of range.
        """
        check_pair(result, truth, self.categories)
        is_thing = np.array(self.categories.is_thing, dtype=bool)
        crowd = truth.is_crowd.cpu().numpy()
        truth_counts = is_thing[as_numbers(truth.labels)] & (as_numbers(truth.areas()) > 0) & ~crowd
        result_counts = is_thing[as_numbers(result.labels)] & (as_numbers(result.areas()) > 0)
        pairs, mostly_crowd = _compare(result, truth)
        both = truth_counts[pairs.truth] & result_counts[pairs.result]
        for index, threshold in enumerate(THRESHOLDS):
            close = both & (pairs.iou >= threshold)
            partner = partners(pairs.truth[close], pairs.result[close], len(truth), len(result))
            matched = int((partner >= 0).sum())
            wrong = int((result_counts & (partner < 0) & ~mostly_crowd).sum())
            self._count(index, matched, wrong, int(truth_counts.sum()) - matched)

    def _count(self, index: int, matched: int, wrong: int, missed: int) -> None:
        self.matched[index] += matched
        self.wrong[index] += wrong
        self.missed[index] += missed
        if matched + wrong + missed:
            self.image_sum[index] += matched / (matched + wrong + missed)
            self.images[index] += 1

    def merge(self, other: "MatchedPrecision") -> None:
        """Add the counts of another accumulator.

        Raises:
            ValueError: its categories differ.
        """
        check_same_categories(self.categories, other.categories)
        self.matched += other.matched
        self.wrong += other.wrong
        self.missed += other.missed
        self.image_sum += other.image_sum
        self.images += other.images

    def compute(self) -> MatchedPrecisionValues:
        """Return the values over all images so far."""
        everything = self.matched + self.wrong + self.missed
        return MatchedPrecisionValues(
            thresholds=THRESHOLDS,
            pooled=tuple(int(m) / int(n) if n else NOT_MEASURED for m, n in zip(self.matched, everything)),
            per_image=tuple(
                float(total) / int(n) if n else NOT_MEASURED for total, n in zip(self.image_sum, self.images)
            ),
        )


@dataclass(frozen=True, kw_only=True)
class _OverlapPairs:
    """Overlapping true and predicted instances of the same class (indices from 0), and their IoU."""

    truth: Integers
    result: Integers
    iou: NDArray[np.float64]


def _compare(result: Segments, truth: Segments) -> tuple[_OverlapPairs, NDArray[np.bool_]]:
    """Return the overlapping pairs of the same class, and which results are mostly crowd of their class."""
    overlaps = segment_overlaps(result, truth)
    first, second = overlaps.truth - 1, overlaps.result - 1
    same_class = as_numbers(truth.labels)[first] == as_numbers(result.labels)[second]
    first, second, shared = first[same_class], second[same_class], overlaps.pixels[same_class]
    areas = as_numbers(result.areas())
    union = as_numbers(truth.areas())[first] + areas[second] - shared
    in_crowd = truth.is_crowd.cpu().numpy()[first]
    crowd_pixels = np.zeros(len(result), dtype=np.int64)
    np.maximum.at(crowd_pixels, second[in_crowd], shared[in_crowd])
    return _OverlapPairs(truth=first, result=second, iou=shared / union), 2 * crowd_pixels > areas


def partners(truth: Integers, result: Integers, truths: int, results: int) -> Integers:
    """Return the index of the true object of each result, or -1, in a maximum one-to-one matching.

    `truth[p]` and `result[p]` are the indices of the pair p that may be matched; `truths` and `results` are
    the numbers of objects.
    """
    if not len(truth):
        return np.full(results, -1, dtype=np.int64)
    graph = csr_matrix((np.ones(len(truth), dtype=np.int8), (truth, result)), shape=(truths, results))
    return np.asarray(maximum_bipartite_matching(graph, perm_type="row"), dtype=np.int64)

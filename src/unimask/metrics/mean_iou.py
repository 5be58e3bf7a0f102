"""Mean intersection over union of classes, from one confusion matrix over all images."""

from dataclasses import dataclass

import numpy as np

from unimask.metrics.confusion import Confusion
from unimask.metrics.overlaps import (
    NOT_MEASURED,
    Integers,
    as_numbers,
    check_pair,
    check_same_categories,
    flat_map,
    joint_histogram,
)
from unimask.structures import Categories, Segments


@dataclass(frozen=True, kw_only=True)
class MeanIoUValues:
    """The values of `MeanIoU`, each in [0, 1]; -1 if no pixel of the ground truth has a class."""

    mean_iou: float  # over the classes that occur in the ground truth or in the results
    pixel_accuracy: float  # share of the pixels with a true class that are predicted as this class
    per_class: tuple[float, ...]  # IoU per category; -1 where it occurs on neither side

    def as_dict(self) -> dict[str, float]:
        """Return `mIoU` and `pixel_accuracy`."""
        return {"mIoU": self.mean_iou, "pixel_accuracy": self.pixel_accuracy}

    def by_class(self) -> dict[str, tuple[float, ...]]:
        """Return `IoU` of each category, in the order of the categories."""
        return {"IoU": self.per_class}


class MeanIoU:
    """Accumulates the IoU of classes over all pixels of all images.

    Pixels that are void in the ground truth (id 0) are left out on both sides. A void pixel of a result is a
    false negative of the true class and no false positive. A class that occurs only in results has IoU 0 and
    counts in the mean. Only the class of a segment matters: crowd counts as its class, and all instances of a
    class as one area.
    """

    def __init__(self, categories: Categories) -> None:
        self.categories = categories
        shape = (len(categories), len(categories) + 1)
        self.confusion: Integers = np.zeros(
            shape, dtype=np.int64
        )  # (true, predicted); the last column is void

    def update(self, result: Segments, truth: Segments) -> None:
        """Add one image.

        Raises:
            ValueError: sizes differ, a label or an id is out of range, or segments overlap.
        """
        self.count(result, truth)

    def count(self, result: Segments, truth: Segments) -> float:
        """Add one image; return the mean IoU of this image alone, 1 if its ground truth is all void.

        Raises:
            ValueError: as in `update`.
        """
        own = self._confusion_of(result, truth)
        self.confusion += own
        value = _values(own).mean_iou
        return 1.0 if value == NOT_MEASURED else value

    def _confusion_of(self, result: Segments, truth: Segments) -> Integers:
        check_pair(result, truth, self.categories)
        overlaps = joint_histogram(flat_map(truth), flat_map(result))
        void = np.array([len(self.categories)])
        true = np.concatenate([void, as_numbers(truth.labels)])[overlaps.truth]
        predicted = np.concatenate([void, as_numbers(result.labels)])[overlaps.result]
        known = true < len(self.categories)
        confusion: Integers = np.zeros_like(self.confusion)
        np.add.at(confusion, (true[known], predicted[known]), overlaps.pixels[known])
        return confusion

    def merge(self, other: "MeanIoU") -> None:
        """Add the counts of another accumulator.

        Raises:
            ValueError: its categories differ.
        """
        check_same_categories(self.categories, other.categories)
        self.confusion += other.confusion

    def compute(self) -> MeanIoUValues:
        """Return the values over all images so far."""
        return _values(self.confusion)

    def table(self) -> Confusion:
        """Return the confusion of the pixels; its last row (false positives) is 0."""
        whole = np.vstack([self.confusion, np.zeros((1, self.confusion.shape[1]), dtype=np.int64)])
        matrix = tuple(map(tuple, whole.tolist()))
        return Confusion(unit="pixels", names=self.categories.names, matrix=matrix, by_size={})


def _values(confusion: Integers) -> MeanIoUValues:
    right = confusion.diagonal()
    union = confusion.sum(axis=1) + confusion[:, :-1].sum(axis=0) - right
    per_class = tuple(
        int(shared) / int(whole) if whole else NOT_MEASURED for shared, whole in zip(right, union)
    )
    present = [iou for iou in per_class if iou != NOT_MEASURED]
    if not present:
        return MeanIoUValues(mean_iou=NOT_MEASURED, pixel_accuracy=NOT_MEASURED, per_class=per_class)
    return MeanIoUValues(
        mean_iou=sum(present) / len(present),
        pixel_accuracy=int(right.sum()) / int(confusion.sum()),
        per_class=per_class,
    )

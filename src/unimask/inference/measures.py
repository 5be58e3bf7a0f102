"""What a task measures: its metrics as one state, and what comes out of it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from unimask.config.tasks import Task
from unimask.errors import DataError
from unimask.files import write_json
from unimask.metrics.average_precision import BoxAveragePrecision, MaskAveragePrecision
from unimask.metrics.confusion import BoxConfusion, Confusion, ConfusionState, SegmentConfusion
from unimask.metrics.matched_precision import MatchedPrecision
from unimask.metrics.mean_iou import MeanIoU
from unimask.metrics.overlaps import NOT_MEASURED
from unimask.metrics.panoptic_quality import PanopticQuality
from unimask.ops.id_maps import renumber
from unimask.structures import Categories, Segments, Truth

Same = TypeVar("Same")


@runtime_checkable
class Values(Protocol):
    """What a metric has measured."""

    def as_dict(self) -> dict[str, float]:
        """Return flat names and their values."""

    def by_class(self) -> dict[str, tuple[float, ...]]:
        """Return names and their values for each category."""


@runtime_checkable
class Metric(Protocol):
    """A state that counts images; states can be merged."""

    def update(self, result: Any, truth: Any) -> None:
        """Count one image; both are segments, or both are boxes, as the task has them."""

    def merge(self: Same, other: Same) -> None:
        """Add what another state has counted."""

    def compute(self) -> Values:
        """Return the values over all images so far."""


METRICS: dict[Task, tuple[Callable[[Categories], Metric], ...]] = {
    "panoptic": (PanopticQuality, MeanIoU, MatchedPrecision),
    "instance": (MaskAveragePrecision, MatchedPrecision),
    "semantic": (),
    "detection": (BoxAveragePrecision,),
}
"""What a task measures, besides what was taken for what."""

CONFUSIONS: dict[Task, Callable[[Categories], ConfusionState]] = {
    "panoptic": partial(SegmentConfusion, flat=True),
    "instance": partial(SegmentConfusion, flat=False),
    "semantic": MeanIoU,
    "detection": BoxConfusion,
}


MAIN_MEASURES: dict[Task, tuple[str, ...]] = {
    "panoptic": ("PQ", "SQ", "RQ", "mIoU"),
    "instance": ("AP", "AP50", "AP75", "AP@0.50"),
    "semantic": ("mIoU", "pixel_accuracy"),
    "detection": ("AP", "AP50", "AP75", "AR100"),
}
"""What is shown first; the first one says which of several models is best."""

QUALITY: dict[Task, str] = {
    "panoptic": "of the segments are right",
    "instance": "of the instances are right",
    "semantic": "mIoU",
    "detection": "of the boxes are right",
}
"""What `TaskMetrics.update` measures of a single image: of segments right / (right + wrong + missed)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured, as shares in [0, 1]; None where there was nothing to measure.

    `values` holds, by task:
    - panoptic: PQ, SQ, RQ, also with `_things` and `_stuff`; mIoU and pixel_accuracy of the panoptic result;
      AP@0.50 ... of its things
    - instance: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl (COCO's standard, with 100
      detections per image and class); AP_all, AP50_all, AP75_all, AR_all (with 1000), both over instances
      of every score; AP@0.50 ... AP@0.90, which are matched / (matched + wrong + missed), over instances from
      the segmenter's threshold on, and their means over images, AP_per_image@0.50 ...
    - semantic: mIoU, pixel_accuracy
    - detection: COCO's numbers as for instance, of boxes: AP to ARl, and AP_all to AR_all

    `per_category` holds PQ, SQ, RQ and IoU, or AP, or IoU, by the category's name; categories that occur
    neither in the truth nor in the results are left out.
    """

    task: Task
    values: Mapping[str, float | None]
    per_category: Mapping[str, Mapping[str, float]]
    images: int
    seconds: float  # for reading, predicting and measuring
    confusion: Confusion  # instances and boxes from the segmenter's threshold on

    @property
    def main(self) -> dict[str, float | None]:
        """The measures to look at first."""
        return {name: self.values[name] for name in MAIN_MEASURES[self.task]}

    def ranked_categories(self) -> dict[str, Mapping[str, float]]:
        """Return `per_category`, the best category first, by the first measure that it has."""
        return dict(sorted(self.per_category.items(), key=lambda one: -next(iter(one[1].values()))))

    def to_json(self) -> dict[str, object]:
        """Return all fields as plain values; a measure of nothing is None."""
        values = {name: None if value == NOT_MEASURED else value for name, value in self.values.items()}
        return {**asdict(self), "values": values}

    def save(self, path: str | Path) -> None:
        """Write the evaluation as JSON; the file is complete when it appears.

        Raises:
            DataError: the file cannot be written.
        """
        path = Path(path)
        try:
            write_json(path, self.to_json(), rows=True)
        except OSError as error:
            raise DataError(path, f"the evaluation cannot be written ({error.strerror or error})") from None


class TaskMetrics:
    """All metrics of a task as one state: processes count images of their own and merge their states."""

    def __init__(self, task: Task, categories: Categories, instance_threshold: float) -> None:
        self.task = task
        self.categories = categories
        self.instance_threshold = instance_threshold
        self.images = 0
        self._confusion = CONFUSIONS[task](categories)
        self._metrics = [metric(categories) for metric in METRICS[task]]
        if isinstance(self._confusion, MeanIoU):  # its confusion is what it measures
            self._measures: list[Metric] = [*self._metrics, self._confusion]
        else:
            self._measures = self._metrics

    def update(self, result: Truth, truth: Truth) -> float:
        """Count one image; return how good its result is, from 0 to 1 (see `QUALITY`).

        Labels index the categories of the state.

        Raises:
            ValueError: result and truth do not fit each other or the categories.
        """
        found = self.confident(result)
        for metric in self._metrics:
            metric.update(found if isinstance(metric, MatchedPrecision) else result, truth)
        self.images += 1
        return self._confusion.count(found, truth)

    def confident(self, result: Truth) -> Truth:
        """Return a result without the instances or boxes that score below the threshold."""
        if self.task not in ("instance", "detection"):
            return result
        keep = result.scores >= self.instance_threshold
        return renumber(result, keep) if isinstance(result, Segments) else result.select(keep)

    def table(self) -> Confusion:
        """Return the confusion matrix so far."""
        return self._confusion.table()

    def merge(self, other: "TaskMetrics") -> None:
        """Add the images that another state has counted.

        Raises:
            ValueError: it counts another task or other categories.
        """
        if other.task != self.task:
            raise ValueError(f"metrics of {self.task} and of {other.task} cannot be merged")
        for metric, added in zip(self._metrics, other._metrics):
            metric.merge(added)
        self._confusion.merge(other._confusion)
        self.images += other.images

    def compute(self, seconds: float = 0.0) -> Evaluation:
        """Return the evaluation over all images so far."""
        values: dict[str, float | None] = {}
        per_category: dict[str, dict[str, float]] = {name: {} for name in self.categories.names}
        for metric in self._measures:
            measured = metric.compute()
            values |= {
                name: None if value == NOT_MEASURED else value for name, value in measured.as_dict().items()
            }
            for measure, numbers in measured.by_class().items():
                for name, number in zip(self.categories.names, numbers):
                    if number != NOT_MEASURED:
                        per_category[name][measure] = number
        return Evaluation(
            task=self.task,
            values=values,
            per_category={name: numbers for name, numbers in per_category.items() if numbers},
            images=self.images,
            seconds=seconds,
            confusion=self._confusion.table(),
        )

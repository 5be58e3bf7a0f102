"""How good a segmenter is on labelled images: the measures of a task, at the size of the files."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from unimask.config.images import Task
from unimask.data.open import open_dataset
from unimask.data.views import match_categories
from unimask.errors import DataError, NotFiniteError
from unimask.files import write_json
from unimask.inference.batches import ahead
from unimask.metrics.average_precision import BoxAveragePrecision, MaskAveragePrecision
from unimask.metrics.matched_precision import MatchedPrecision
from unimask.metrics.mean_iou import MeanIoU
from unimask.metrics.overlaps import NOT_MEASURED
from unimask.metrics.panoptic_quality import PanopticQuality
from unimask.ops.id_maps import renumber
from unimask.structures import Categories, Dataset, Detections, Segments, Truth

Progress = Callable[[int, int], object]
"""Called after each image with the number of images done and of all images."""


Same = TypeVar("Same")


@runtime_checkable
class Finder(Protocol):
    """What can be evaluated; `segmenter.Segmenter` is one."""

    @property
    def task(self) -> Task:
        """The task that it does unless it is asked for another."""

    @property
    def categories(self) -> Categories:
        """The categories that the labels of its segments or boxes index."""

    @property
    def background(self) -> bool:
        """Whether data without stuff get a category "background" for panoptic and semantic segments."""

    @property
    def instance_threshold(self) -> float:
        """The score from which on an instance or a box counts as found."""

    def find(
        self, images: Iterable[Tensor], task: Task, *, threshold: float | None = None, batch_size: int = 4
    ) -> Iterator[Segments | Detections]:
        """Yield the segments or boxes of each image (uint8, 3 x height x width), at its size, in order."""


@runtime_checkable
class Values(Protocol):
    """What a metric has measured."""

    def as_dict(self) -> dict[str, float]:
        """Return flat names and their values."""

    def by_class(self) -> dict[str, tuple[float, ...]]:
        """Return names and their values for each category."""


@runtime_checkable
class Metric(Protocol):
    """A state that counts images and adds."""

    def update(self, result: Any, truth: Any) -> None:
        """Count one image; both are segments, or both are boxes, as the task has them."""

    def merge(self: Same, other: Same) -> None:
        """Add what another state has counted."""

    def compute(self) -> Values:
        """Return the values over all images so far."""


METRICS: dict[Task, tuple[Callable[[Categories], Metric], ...]] = {
    "panoptic": (PanopticQuality, MeanIoU, MatchedPrecision),
    "instance": (MaskAveragePrecision, MatchedPrecision),
    "semantic": (MeanIoU,),
    "detection": (BoxAveragePrecision,),
}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured, as shares in [0, 1]; None where there was nothing to measure.

    `values` holds, by task:
    - panoptic: PQ, SQ, RQ, also with `_things` and `_stuff`; mIoU and pixel_accuracy of the panoptic result;
      AP@0.50 ... of its things
    - instance: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl (COCO's standard, with 100
      detections per image and class); AP_all, AP50_all, AP75_all, AR_all (with 1000), both over instances
      of every score; AP@0.50 ... AP@0.90, which are matched / (matched + wrong + missed), over instances from
      the segmenter's threshold on, and their means over images, AP_per_picture@0.50 ...
    - semantic: mIoU, pixel_accuracy
    - detection: COCO's numbers as for instance, of boxes: AP to ARl, and AP_all to AR_all

    `per_category` holds PQ, SQ, RQ and IoU, or AP, or IoU, by the category's name; categories that occur
    neither in the truth nor in the results are left out.
    """

    task: Task
    values: Mapping[str, float | None]
    per_category: Mapping[str, Mapping[str, float]]
    pictures: int
    seconds: float  # for reading, predicting and measuring

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
            write_json(path, self.to_json())
        except OSError as error:
            raise DataError(path, f"the evaluation cannot be written ({error.strerror or error})") from None


class TaskMetrics:
    """All metrics of a task as one state that adds: processes can count images of their own and merge."""

    def __init__(self, task: Task, categories: Categories, instance_threshold: float) -> None:
        self.task = task
        self.categories = categories
        self.instance_threshold = instance_threshold
        self.pictures = 0
        self._metrics = [metric(categories) for metric in METRICS[task]]

    def update(self, result: Truth, truth: Truth) -> None:
        """Count one image; labels index the categories of the state.

        Raises:
            ValueError: result and truth do not fit each other or the categories.
        """
        found = result
        if self.task == "instance" and isinstance(result, Segments):
            found = renumber(result, result.scores >= self.instance_threshold)
        for metric in self._metrics:
            metric.update(found if isinstance(metric, MatchedPrecision) else result, truth)
        self.pictures += 1

    def merge(self, other: "TaskMetrics") -> None:
        """Add the images that another state has counted.

        Raises:
            ValueError: it counts another task or other categories.
        """
        if other.task != self.task:
            raise ValueError(f"metrics of {self.task} and of {other.task} cannot be merged")
        for metric, added in zip(self._metrics, other._metrics):
            metric.merge(added)
        self.pictures += other.pictures

    def compute(self, seconds: float = 0.0) -> Evaluation:
        """Return the evaluation over all images so far."""
        values: dict[str, float | None] = {}
        per_category: dict[str, dict[str, float]] = {name: {} for name in self.categories.names}
        for metric in self._metrics:
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
            pictures=self.pictures,
            seconds=seconds,
        )


def evaluate(
    segmenter: Finder,
    data: Dataset | str | Path,
    task: Task | None = None,
    progress: Progress = lambda done, total: None,
    *,
    split: str = "val",
    batch_size: int = 4,
    follow_outside: bool = False,
) -> Evaluation:
    """Return the measures of the task over a data set, each image at its own size.

    `task` is the segmenter's own unless another is named.
    `data` is what `unimask evaluate --data` takes, of which the `split` is opened, or a data set with ground
    truth of the task. Its categories are matched by name to the segmenter's; a category that only the
    segmenter has counts as wrong where it is predicted. `progress` is called after each image with the number
    of images done and of all images. `follow_outside` allows names and links of the data to lead out of its
    folder. At most `batch_size` images or tiles go through the model together.

    Raises:
        DataError: there is no image, one cannot be read, a category is unknown to the segmenter, or a
            prediction is not finite.
    """
    start = time.perf_counter()
    task = task or segmenter.task
    dataset = data
    if isinstance(dataset, str | Path):
        background = segmenter.background
        dataset = open_dataset(dataset, split, task, background, follow_outside=follow_outside)
    metrics = measure(segmenter, dataset, task, range(len(dataset)), progress, batch_size=batch_size)
    if metrics.pictures == 0:
        raise DataError("data", "there is no image to evaluate on")
    return metrics.compute(time.perf_counter() - start)


def measure(
    segmenter: Finder,
    dataset: Dataset,
    task: Task,
    indices: Sequence[int],
    progress: Progress = lambda done, total: None,
    *,
    batch_size: int = 4,
) -> TaskMetrics:
    """Return the state of all metrics after some of the images: the share of one process, to be merged.

    Merged states give the values of one process; only where instances of different images have equal scores
    can the order of merging move AP, as it does in COCO's own evaluation.

    Raises:
        DataError: an image cannot be read, or a category is unknown to the segmenter.
    """
    metrics = TaskMetrics(task, segmenter.categories, segmenter.instance_threshold)
    for result, truth in _pairs(segmenter, dataset, task, indices, max(1, batch_size)):
        metrics.update(result, truth)
        progress(metrics.pictures, len(indices))
    return metrics


def _pairs(
    segmenter: Finder,
    dataset: Dataset,
    task: Task,
    indices: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[Truth, Truth]]:
    """Yield result and ground truth of each image; what has a score is asked for with every score."""
    matched = match_categories(dataset, segmenter.categories)
    waiting: deque[Truth] = deque()  # of images whose result is to come
    names: list[str] = []

    def images() -> Iterator[Tensor]:
        for _, future in ahead(matched.__getitem__, indices, batch_size):
            sample = future.result()
            waiting.append(sample.truth)
            names.append(sample.image_id)
            yield sample.image

    threshold = 0.0 if task in ("instance", "detection") else None
    try:
        for found in segmenter.find(images(), task, threshold=threshold, batch_size=batch_size):
            yield found, waiting.popleft()
    except NotFiniteError as error:
        raise error.of(names[error.image]) from None

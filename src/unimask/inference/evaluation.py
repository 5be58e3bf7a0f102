"""How good a segmenter is on labelled images: the measures of a task, at the size of the files."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from unimask.config.images import Experiment
from unimask.config.tasks import Task
from unimask.config.values import check_count
from unimask.data.check import check_datasets
from unimask.data.formats.shapes import is_generated
from unimask.data.open import open_dataset
from unimask.data.own import checked
from unimask.data.reading import Reading
from unimask.data.views import match_categories, view
from unimask.errors import DataError, NotFiniteError
from unimask.files import write_json
from unimask.inference.batches import Progress, ahead
from unimask.inference.loading import load
from unimask.inference.segmenter import Segmenter
from unimask.metrics.average_precision import BoxAveragePrecision, MaskAveragePrecision
from unimask.metrics.confusion import BoxConfusion, Confusion, ConfusionState, SegmentConfusion
from unimask.metrics.matched_precision import MatchedPrecision
from unimask.metrics.mean_iou import MeanIoU
from unimask.metrics.overlaps import NOT_MEASURED
from unimask.metrics.panoptic_quality import PanopticQuality
from unimask.ops.id_maps import renumber
from unimask.results.album import Album
from unimask.structures import Categories, Dataset, Detections, Sample, Segments, Truth

LOOKS = 10.0  # seconds for checking data before the evaluation; of a large set a part is checked

Seen = Callable[[int, Sample, Truth, float], object]
"""Called with each image: its index, itself, what was found in it that counts, and its quality."""

Same = TypeVar("Same")


@runtime_checkable
class Finder(Protocol):
    """Anything that can be evaluated, such as `segmenter.Segmenter`."""

    @property
    def task(self) -> Task:
        """The task unless another is named."""

    @property
    def categories(self) -> Categories:
        """The categories that the labels of its segments or boxes index."""

    @property
    def background(self) -> bool:
        """Whether data without stuff get a category "background" for panoptic and semantic segments."""

    @property
    def set_reading(self) -> Reading:
        """How images of a labelled set are read; what it leaves open the set decides."""

    @property
    def instance_threshold(self) -> float:
        """The lowest score of an instance or a box that counts."""

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


def _nothing(index: int, sample: Sample, found: Truth, quality: float) -> None:
    """Do nothing with the image."""


def _silent(text: str) -> None:
    """Say nothing."""


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


def evaluate(
    segmenter: Finder | str | Path,
    data: Dataset | str | Path,
    task: Task | None = None,
    progress: Progress = lambda done, total: None,
    *,
    split: str = "val",
    batch_size: int = 4,
    follow_outside: bool = False,
    pictures: str | Path | None = None,
    message: Callable[[str], object] = _silent,
) -> Evaluation:
    """Return the measures of the task over a data set, each image at its own size.

    `segmenter` may be what `load` takes: the name or the folder of a model.
    `task` is the segmenter's own unless another is named.
    `data` is what `unimask evaluate --data` takes, of which the `split` is opened, or your own `Dataset`,
    which is taken as ground truth of the task. Its categories are matched by name to the segmenter's; a
    category that only the segmenter has counts as wrong where it is predicted. `progress` is called after
    each image with the number of images done and of all images. `follow_outside` allows names and links of
    the data to lead out of its folder. At most `batch_size` images or tiles go through the model together. In
    the folder `pictures` each image appears with its truth beside its prediction, and `worst.png`,
    `confusion.png` and `confusion.json`.

    Files of data are checked first, for ten seconds at most: `message` gets what `unimask.check` warns of.

    Raises:
        DataError: there is no image, the data cannot be used (see `unimask.check`), an image cannot be read,
            a category is unknown to the segmenter, a prediction is not finite, or the folder cannot be
            written to.
    """
    check_count(batch_size, "batch_size")
    start = time.perf_counter()
    segmenter = load(segmenter) if isinstance(segmenter, str | Path) else segmenter
    task = task or segmenter.task
    dataset = data
    background = segmenter.background
    if isinstance(dataset, str | Path):
        dataset = open_dataset(
            dataset, split, task, background, follow_outside=follow_outside, reading=segmenter.set_reading
        )
        if not is_generated(str(data)):
            _look_at(dataset, split, task, _experiment_of(segmenter), str(data), message)
    else:
        dataset = view(checked(dataset), task, background=background)
    album = None if pictures is None else Album(Path(pictures), segmenter.categories, QUALITY[task])
    seen = _nothing if album is None else album.add
    metrics = measure(
        segmenter, dataset, task, range(len(dataset)), progress, batch_size=batch_size, seen=seen
    )
    if metrics.images == 0:
        raise DataError("data", "there is no image to evaluate on")
    evaluation = metrics.compute(time.perf_counter() - start)
    if album is not None:
        album.finish(evaluation.confusion)
    return evaluation


def _experiment_of(segmenter: Finder) -> Experiment:
    """Return the experiment of a segmenter, for its view and queries; of any other finder the default one."""
    return segmenter.model_file.experiment if isinstance(segmenter, Segmenter) else Experiment()


def _look_at(
    dataset: Dataset,
    split: str,
    task: Task,
    experiment: Experiment,
    data: str,
    message: Callable[[str], object],
) -> None:
    """Report what may be wrong with a data set.

    Raises:
        DataError: it cannot be used for an evaluation.
    """
    checked = check_datasets({split: dataset}, task, experiment, data=data, seconds=LOOKS)
    checked.refuse()
    for sentence in checked.warnings:
        message(f"warning: {sentence}")


def measure(
    segmenter: Finder,
    dataset: Dataset,
    task: Task,
    indices: Sequence[int],
    progress: Progress = lambda done, total: None,
    *,
    batch_size: int = 4,
    seen: Seen = _nothing,
) -> TaskMetrics:
    """Return the state of all metrics after some of the images: the share of one process, to be merged.

    States that are merged in the order of their images give the values of one process. Where instances of
    different images have equal scores, another order can move AP, as in COCO's own evaluation. `seen`
    gets each image as soon as it is counted.

    Raises:
        DataError: an image cannot be read, or a category is unknown to the segmenter.
    """
    metrics = TaskMetrics(task, segmenter.categories, segmenter.instance_threshold)
    for index, sample, found in _found(segmenter, dataset, task, indices, batch_size):
        quality = metrics.update(found, sample.truth)
        seen(index, sample, metrics.confident(found), quality)
        progress(metrics.images, len(indices))
    return metrics


def _found(
    segmenter: Finder,
    dataset: Dataset,
    task: Task,
    indices: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[int, Sample, Truth]]:
    """Yield each image and what is found in it, with instances and boxes of every score."""
    matched = match_categories(dataset, segmenter.categories, task)
    waiting: deque[tuple[int, Sample]] = deque()  # that wait for their results
    names: list[str] = []

    def images() -> Iterator[Tensor]:
        for index, future in ahead(matched.__getitem__, indices, batch_size):
            sample = future.result()
            waiting.append((index, sample))
            names.append(sample.image_id)
            yield sample.image

    threshold = 0.0 if task in ("instance", "detection") else None
    try:
        for found in segmenter.find(images(), task, threshold=threshold, batch_size=batch_size):
            yield *waiting.popleft(), found
    except NotFiniteError as error:
        raise error.of(names[error.image]) from None

"""How good a segmenter is on labelled images: the measures of a task, at the size of the files."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

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
from unimask.inference.batches import Progress, ahead
from unimask.inference.loading import load
from unimask.inference.measures import QUALITY, Evaluation, TaskMetrics
from unimask.inference.segmenter import Segmenter
from unimask.results.album import Album
from unimask.structures import Categories, Dataset, Detections, Sample, Segments, Truth

LOOKS = 10.0  # seconds for checking data before the evaluation; of a large set a part is checked

Seen = Callable[[int, Sample, Truth, float], object]
"""Called with each image: its index, itself, what was found in it that counts, and its quality."""


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


def _nothing(index: int, sample: Sample, found: Truth, quality: float) -> None:
    """Do nothing with the image."""


def _silent(text: str) -> None:
    """Say nothing."""


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

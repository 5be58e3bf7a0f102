"""The images of a training, and the metric that says which model is best."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unimask.config.images import Experiment
from unimask.config.tasks import Task
from unimask.data.open import open_items, with_truth_of
from unimask.data.own import checked, name_of, split_own
from unimask.data.reading import Reading, reading_of
from unimask.data.views import match_categories, view
from unimask.errors import DataError
from unimask.inference.measures import MAIN_MEASURES
from unimask.structures import Categories, Dataset


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """The splits of a data set, with ground truth of one task.

    Without evaluation, `validation` is `training` itself.
    """

    task: Task
    data: str
    training: Dataset
    validation: Dataset
    reading: Reading  # of the images, as decided for the training split

    @property
    def categories(self) -> Categories:
        """Return the categories of both splits."""
        return self.training.categories

    @property
    def primary_metric(self) -> str:
        """Return the metric whose largest value makes the best model."""
        return MAIN_MEASURES[self.task][0]

    def headline(self, values: Mapping[str, float | None]) -> str:
        """Return the most important of all metrics in one line."""
        measured = {name: value for name in MAIN_MEASURES[self.task] if (value := values[name]) is not None}
        if self.primary_metric not in measured:
            return f"{self.primary_metric} not measured: no ground truth"
        return "  ".join(f"{name} {value:.4f}" for name, value in measured.items())


def open_task(
    data: str | Path | Dataset, task: Task, experiment: Experiment, validation: Dataset | None = None
) -> TrainingTask:
    """Open the train and val splits of the data, with the categories of the train split.

    With `training.evaluate_every` = 0 the val split is not needed. Of a data set that somebody wrote, and no
    other for validation, about one sample in ten is held out. What is decided about reading the images of the
    train split holds for those of the val split.

    Raises:
        DataError: a split is missing, empty or broken, or lacks a category of the other.
    """
    if not isinstance(data, str | Path):
        return _own_task(data, validation, task, experiment)
    if validation is not None:
        raise DataError(data, "has a val split of its own; `validation` goes with a Dataset")
    opened = partial(open_items, data, task=task, follow_outside=experiment.data.follow_outside)
    seen = partial(with_truth_of, task, path=data, background=experiment.data.background)
    items = opened(split="train", reading=reading_of(experiment.data))
    training, reading = seen(items), items.decided.reading
    if len(training) == 0:
        raise DataError(data, "the train split holds no images")
    if experiment.training.evaluate_every <= 0:
        return TrainingTask(
            task=task, data=str(data), training=training, validation=training, reading=reading
        )
    try:
        validation = match_categories(seen(opened(split="val", reading=reading)), training.categories, task)
    except DataError as error:
        way_out = f"{error.reason} (training.evaluate_every=0 trains without a val split)"
        raise DataError(error.path, way_out) from None
    if len(validation) == 0:
        raise DataError(data, "the val split holds no images (training.evaluate_every=0 trains without it)")
    return TrainingTask(task=task, data=str(data), training=training, validation=validation, reading=reading)


def _own_task(data: Dataset, validation: Dataset | None, task: Task, experiment: Experiment) -> TrainingTask:
    """Return the task of data sets that somebody wrote."""
    given: Dataset = checked(data)
    if validation is None and experiment.training.evaluate_every > 0:
        given, validation = split_own(data)
    elif validation is not None:
        validation = checked(validation)
    background = experiment.data.background
    training = view(given, task, background=background)
    if len(training) == 0:
        raise DataError(name_of(data), "holds no samples")
    measured = training
    if validation is not None:
        measured = match_categories(view(validation, task, background=background), training.categories, task)
    reading = reading_of(experiment.data)
    return TrainingTask(
        task=task, data=name_of(data), training=training, validation=measured, reading=reading
    )

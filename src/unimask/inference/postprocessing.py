"""The second of the two stages of a prediction: thresholds turn predictions into segments or boxes."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from unimask.config.data import SlidingWindow, why_not_joined
from unimask.config.images import Experiment, PostprocessConfig
from unimask.config.models import queries_of, tasks_of
from unimask.config.tasks import Task, check_task
from unimask.errors import ConfigError
from unimask.inference.joining import AveragedWindows, Joiner, StitchedTiles, categories_united
from unimask.inference.predictions import TilePrediction
from unimask.inference.tta import DUPLICATE_IOU
from unimask.postprocess.tasks import nearly_full, postprocess
from unimask.structures import Categories, Detections, Segments

Tell = Callable[[int, str], object]
"""Called with the index of an image and a sentence about it."""


def thresholds_for(experiment: Experiment, task: Task, threshold: float | None) -> PostprocessConfig:
    """Return the thresholds of a task: the model's own, or with another lowest score.

    Raises:
        ConfigError: the model does not have the task, or sees parts of an image that cannot be joined for it,
            or the threshold is not from 0 to 1.
    """
    check_task(task)
    known = tasks_of(experiment.model)
    if task not in known:
        raise ConfigError("task", f"this model does not know {task!r}; it knows: {', '.join(known)}")
    if reason := why_not_joined(experiment.data.view, task):
        raise ConfigError("data.view", reason)
    if threshold is None:
        return experiment.postprocess
    check_threshold(threshold)
    return dataclasses.replace(
        experiment.postprocess, object_threshold=threshold, instance_threshold=threshold
    )


def check_threshold(threshold: float) -> None:
    """Check that a threshold of scores is possible.

    Raises:
        ConfigError: it is not from 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError("threshold", f"must be from 0 to 1; got {threshold:g}")


@dataclass(frozen=True, kw_only=True)
class Postprocessor:
    """Makes segments or boxes of the predictions for the tiles of an image."""

    experiment: Experiment
    categories: Categories
    task: Task
    thresholds: PostprocessConfig
    augmented: bool  # predictions are of several versions of the image
    tell: Tell = lambda image, sentence: None

    def joiner(self) -> Joiner:
        """Return the joiner of the tiles of the next image."""
        if isinstance(self.experiment.data.view, SlidingWindow):
            return AveragedWindows()
        return StitchedTiles(
            self._of_tile,
            categories_united(self.categories, self.task),
            overlapping=self.task == "instance",
        )

    def _of_tile(self, one: TilePrediction) -> Segments | Detections:
        settings = self.thresholds
        if self.augmented:
            duplicate_iou = min(settings.duplicate_iou, DUPLICATE_IOU)
            settings = dataclasses.replace(settings, duplicate_iou=duplicate_iou)
        found = postprocess(one.prediction, 0, one.placement, self.categories, settings, self.task).cpu()
        own = self.experiment.postprocess
        if said := nearly_full(found, self.task, own, queries_of(self.experiment.model)):
            self.tell(one.image, said)
        return found

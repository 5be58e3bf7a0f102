"""What a training works on: data, categories, and the number that says how good a model is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import unimask
from unimask.checkpoints.images import ModelFile
from unimask.config.images import Experiment, Task, experiment_to_dict
from unimask.data.category_tables import categories_to_json
from unimask.data.open import open_dataset
from unimask.data.views import match_categories
from unimask.errors import DataError
from unimask.inference.evaluation import TaskMetrics, measure
from unimask.inference.segmenter import Segmenter
from unimask.machine import command_line
from unimask.models.build import Model
from unimask.structures import Categories, Dataset

HEADLINES: dict[Task, tuple[str, ...]] = {
    "panoptic": ("PQ", "SQ", "RQ", "mIoU"),
    "instance": ("AP", "AP50", "AP75", "AP@0.50"),
    "semantic": ("mIoU", "pixel_accuracy"),
    "detection": ("AP", "AP50", "AP75", "AR100"),
}
"""The metrics that are shown after an evaluation; the first one says which model is best."""


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """The data of a training, seen as one task. Without evaluation, `validation` is `training` itself."""

    task: Task
    data: str
    training: Dataset
    validation: Dataset

    @property
    def categories(self) -> Categories:
        """What the model learns to tell apart."""
        return self.training.categories

    @property
    def primary_metric(self) -> str:
        """The metric whose largest value makes the best model."""
        return HEADLINES[self.task][0]

    def headline(self, values: Mapping[str, float]) -> str:
        """The most important of all metrics, in one line."""
        return "  ".join(f"{name} {values[name]:.4f}" for name in HEADLINES[self.task])


def open_task(data: str | Path, task: Task, experiment: Experiment) -> TrainingTask:
    """The train and val splits of the data, with the same categories.

    With `training.evaluate_every` = 0 the val split is not needed.

    Raises:
        DataError: a split is missing, empty or broken, or lacks a category of the other.
    """
    training = open_dataset(data, "train", task, experiment.data.background)
    if len(training) == 0:
        raise DataError(data, "the train split holds no pictures")
    if experiment.training.evaluate_every <= 0:
        return TrainingTask(task=task, data=str(data), training=training, validation=training)
    try:
        validation = open_dataset(data, "val", task, experiment.data.background)
        validation = match_categories(validation, training.categories)
    except DataError as error:
        way_out = f"{error.reason} (training.evaluate_every=0 trains without a val split)"
        raise DataError(error.path, way_out) from None
    if len(validation) == 0:
        raise DataError(data, "the val split holds no pictures (training.evaluate_every=0 trains without it)")
    return TrainingTask(task=task, data=str(data), training=training, validation=validation)


def describe_run(experiment: Experiment, task: TrainingTask) -> dict[str, object]:
    """What names a run, ready for JSON."""
    return {
        "unimask": unimask.__version__,
        "command": command_line(),
        "task": task.task,
        "data": task.data,
        "pictures": len(task.training),
        "categories": categories_to_json(task.categories),
        "experiment": experiment_to_dict(experiment),
    }


def evaluate_model(
    model: Model,
    model_file: ModelFile,
    task: TrainingTask,
    device: torch.device,
    progress: Callable[[int, int], None],
    *,
    rank: int = 0,
    world: int = 1,
) -> TaskMetrics:
    """The state of all metrics after this process's share of the val split, to be merged with the others'.

    The model is in eval mode meanwhile. `progress` is called with the pictures done and their number.
    """
    was_training = model.training
    model.eval()
    try:
        segmenter = Segmenter(model, model_file, device)
        share = range(rank, len(task.validation), world)
        return measure(segmenter, task.validation, task.task, share, progress)
    finally:
        model.train(was_training)

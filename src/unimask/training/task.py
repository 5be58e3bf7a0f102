"""What a training works on: data, categories, and the number that says how good a model is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import unimask
from unimask.checkpoint import ModelFile, categories_to_json
from unimask.config import Experiment, Task, experiment_to_dict
from unimask.data.open import open_dataset
from unimask.data.views import match_categories
from unimask.errors import DataError
from unimask.evaluation import evaluate
from unimask.models.mask_classifier import MaskClassifier
from unimask.segmenter import Segmenter
from unimask.structures import Categories, Dataset
from unimask.training.machine import command_line

PRIMARY_METRICS: dict[Task, str] = {"panoptic": "pq", "instance": "ap", "semantic": "miou"}


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
        return PRIMARY_METRICS[self.task]


def open_task(data: str | Path, task: Task, experiment: Experiment) -> TrainingTask:
    """The train and val splits of the data, with the same categories.

    With `training.evaluate_every` = 0 the val split is not needed.

    Raises:
        DataError: a split is missing, empty or broken, or lacks a category of the other.
    """
    background = experiment.data.background
    training = open_dataset(data, "train", task, background)
    if len(training) == 0:
        raise DataError(data, "the train split holds no pictures")
    if experiment.training.evaluate_every <= 0:
        return TrainingTask(task=task, data=str(data), training=training, validation=training)
    try:
        validation = match_categories(open_dataset(data, "val", task, background), training.categories)
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
    model: MaskClassifier,
    model_file: ModelFile,
    task: TrainingTask,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> dict[str, float]:
    """All metrics of the model on the val split; the model is in eval mode meanwhile.

    `progress` is called with the pictures done and their number.
    """
    was_training = model.training
    model.eval()
    try:
        segmenter = Segmenter(model, model_file, device)
        return dict(evaluate(segmenter, task.validation, task.task, progress).values)
    finally:
        model.train(was_training)

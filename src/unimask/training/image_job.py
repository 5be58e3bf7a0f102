"""Train models that find segments or boxes in images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from unimask.checkpoints.images import ModelFile, save_model
from unimask.config.images import Experiment, experiment_to_dict
from unimask.config.training import TrainingConfig
from unimask.data.category_tables import categories_to_json
from unimask.data.check import DataCheck
from unimask.data.loader import box_mask_targets, training_loader
from unimask.inference.evaluation import measure
from unimask.inference.measures import QUALITY, Evaluation, TaskMetrics
from unimask.inference.segmenter import Segmenter
from unimask.losses.build import build_criterion, kind_of
from unimask.losses.criterion import Average
from unimask.models.build import Model, build_model
from unimask.results.confusion_figure import confusion_figure
from unimask.results.figure import as_image
from unimask.results.gallery import Gallery, gallery_sheet, spread
from unimask.structures import Batch, Losses, Prediction, Uniform
from unimask.training.annealing import forward_in_step
from unimask.training.image_data import TrainingTask
from unimask.training.initial import load_initial
from unimask.training.job import Drawing, Stream
from unimask.training.run_folder import RunFolder
from unimask.training.start import say_at_start
from unimask.training.step import Forward, to_device, to_report, uniform_source

Criterion = Callable[[Any, Any, Uniform], Losses]
"""Prediction and targets are of the kind of the model."""


@dataclass(frozen=True, kw_only=True)
class MaskJob:
    """A `Job` on images. `initial` and `renamed` are those of `run.train`."""

    experiment: Experiment
    task: TrainingTask
    initial: str | Path | None
    renamed: Mapping[str, str]
    licence: str
    read: DataCheck | None  # an earlier check of the data

    @property
    def training(self) -> TrainingConfig:
        """Return the settings of the loop."""
        return self.experiment.training

    @property
    def unit(self) -> str:
        """Return the unit of speed, as the log names it."""
        return "images"

    @property
    def primary_metric(self) -> str:
        """Return the metric whose largest value makes the best model."""
        return self.task.primary_metric

    @property
    def source(self) -> str:
        """Return data, task and number of images."""
        return f"{Path(self.task.data).name} ({self.task.task}, {len(self.task.training)} images)"

    def describe(self) -> dict[str, object]:
        """Return what identifies the run, ready for JSON."""
        return {
            "task": self.task.task,
            "data": self.task.data,
            "images": len(self.task.training),
            "categories": categories_to_json(self.task.categories),
            "experiment": experiment_to_dict(self.experiment),
        }

    def begin(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        """Check the data, keep the check in the folder, and report warnings.

        Raises:
            DataError: the data cannot be used for a training.
        """
        for sentence in say_at_start(self.experiment, self.task, self.initial, folder, self.read):
            say(sentence)

    def build(self) -> nn.Module:
        """Build the model with random weights."""
        model = build_model(self.experiment.model, len(self.task.categories))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions like it
        return model

    def initialise(self, model: nn.Module, say: Callable[[str], object]) -> str:
        """Fill the model with its initial weights; return which they are."""
        our_model, categories = cast(Model, model), self.task.categories
        return load_initial(our_model, self.experiment.model, categories, self.initial, self.renamed, say)

    def stream(self, *, start_step: int, rank: int, world: int, pin_memory: bool) -> Stream[Batch]:
        """Return endless augmented batches."""
        config, backbone = self.training, self.experiment.model.backbone
        return training_loader(
            self.task.training,
            self.experiment.data,
            mean=backbone.image_mean,
            std=backbone.image_std,
            batch_size=config.batch_size // (world * config.accumulate),
            seed=config.seed,
            start_step=start_step,
            rank=rank,
            world=world,
            workers=config.workers,
            pin_memory=pin_memory,
        )

    def items(self, batches: Sequence[Batch]) -> int:
        """Return the number of images."""
        return sum(len(batch.targets) for batch in batches)

    def targets(self, batches: Sequence[Batch]) -> int:
        """Return the number of segments or boxes to find."""
        return sum(len(target) for batch in batches for target in batch.targets)

    def criterion(self, device: torch.device, average: Average) -> Callable[[Batch, int, int], "LossOfBatch"]:
        """Return the function that computes the losses of a batch: of masks, boxes, or both."""
        kind, count = kind_of(self.experiment.model), len(self.task.categories)
        criterion = build_criterion(self.experiment.losses, count, average, kind=kind).to(device)

        def loss_of(batch: Batch, step: int, seed: int) -> "LossOfBatch":
            whole = box_mask_targets(batch) if kind == "boxes_and_masks" else batch
            uniform = uniform_source(seed, device)
            forward = forward_in_step(self.experiment, step, uniform)
            return LossOfBatch(to_device(whole, device), criterion, uniform, forward)

        return loss_of

    def evaluate(
        self, model: nn.Module, progress: Callable[[int, int], None], *, rank: int, world: int
    ) -> "ImageShare":
        """Return the metrics of the task over this process's share of the val split, and images of it."""
        our_model = cast(Model, model)
        device = next(our_model.parameters()).device
        segmenter = Segmenter(our_model, self._model_file("in training"), device)
        validation, gallery = self.task.validation, Gallery(spread(len(self.task.validation)))
        first, after = (len(validation) * number // world for number in (rank, rank + 1))
        share = range(first, after)  # so that merged shares have the order of the images, which AP heeds
        metrics = measure(segmenter, validation, self.task.task, share, progress, seen=gallery.add)
        return ImageShare(metrics, gallery)

    def draw(self, share: "ImageShare", step: int) -> Drawing:
        """Return the same few images each time, the worst ones, and the confusion matrix."""
        categories, quality = self.task.categories, QUALITY[self.task.task]
        confusion = share.metrics.table()
        title = f"What was found as what, after step {step:,}"
        return Drawing(
            images={
                "validation": gallery_sheet(share.gallery.same(), categories, quality),
                "worst": gallery_sheet(share.gallery.worst(), categories, quality),
                "confusion": as_image(confusion_figure(confusion, title)),
            },
            tables={"confusion": asdict(confusion)},
        )

    def headline(self, values: Mapping[str, float | None]) -> str:
        """Return the most important metrics in one line."""
        return self.task.headline(values)

    def save(self, folder: Path, model: nn.Module, provenance: str) -> None:
        """Write a model folder."""
        save_model(folder, cast(Model, model), self._model_file(provenance))

    def _model_file(self, provenance: str) -> ModelFile:
        return ModelFile(
            experiment=self.experiment,
            task=self.task.task,
            categories=self.task.categories,
            licence=self.licence,
            provenance=provenance,
        )


@dataclass(frozen=True)
class ImageShare:
    """One process's share of an evaluation: metrics, and images to be shown."""

    metrics: TaskMetrics
    gallery: Gallery

    def merge(self, other: "ImageShare") -> None:
        """Add the share of another process."""
        self.metrics.merge(other.metrics)
        self.gallery.merge(other.gallery)

    def compute(self) -> Evaluation:
        """Return the evaluation over all images so far."""
        return self.metrics.compute()


class LossOfBatch:
    """Call the model on a batch and measure the losses; both are kept, to explain what is not finite."""

    def __init__(self, batch: Batch, criterion: Criterion, uniform: Uniform, forward: Forward) -> None:
        self.batch, self.criterion, self.uniform, self.forward = batch, criterion, uniform, forward
        self.measured: tuple[Prediction, Losses] | None = None

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """Return `total`, and each term of the final prediction, not weighted."""
        prediction = self.forward(model, self.batch.images)
        losses = self.criterion(prediction, self.batch.targets, self.uniform)
        self.measured = (prediction, losses)
        return to_report(losses)

    def problem(self) -> str:
        """Return which terms are not finite, for which images (all, where every prediction is finite)."""
        assert self.measured is not None
        prediction, losses = self.measured
        terms = [name for name, values in losses.terms.items() if not bool(torch.isfinite(values).all())]
        names = [
            name
            for name, good in zip(self.batch.image_ids, prediction.finite().tolist(), strict=True)
            if not good
        ]
        return f"{', '.join(terms) or 'the total'} of {', '.join(names or self.batch.image_ids)}"

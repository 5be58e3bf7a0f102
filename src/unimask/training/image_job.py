"""Training of models that find segments or boxes in pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from unimask.checkpoints.images import ModelFile, save_model
from unimask.config.images import Experiment, TrainingConfig
from unimask.data.loader import box_mask_targets, training_loader
from unimask.inference.evaluation import TaskMetrics
from unimask.losses.build import build_criterion, kind_of
from unimask.losses.criterion import Average
from unimask.models.build import Model, build_model
from unimask.structures import Batch
from unimask.training.annealing import forward_in_step
from unimask.training.initial import load_initial
from unimask.training.job import Stream
from unimask.training.step import LossOfBatch, count_targets, to_device, uniform_source
from unimask.training.task import TrainingTask, describe_run, evaluate_model


@dataclass(frozen=True, kw_only=True)
class MaskJob:
    """A `Job` on pictures. `initial` says where weights start, as `loop.train` explains."""

    experiment: Experiment
    task: TrainingTask
    initial: str | Path | None
    licence: str

    @property
    def training(self) -> TrainingConfig:
        """The settings of the loop."""
        return self.experiment.training

    @property
    def unit(self) -> str:
        """What speed is counted in."""
        return "pictures"

    @property
    def primary_metric(self) -> str:
        """The metric whose largest value makes the best model."""
        return self.task.primary_metric

    @property
    def source(self) -> str:
        """Data, task and number of pictures."""
        return f"{Path(self.task.data).name} ({self.task.task}, {len(self.task.training)} pictures)"

    def describe(self) -> dict[str, object]:
        """What names the run, ready for JSON."""
        return describe_run(self.experiment, self.task)

    def keep(self, folder: Path) -> None:
        """Nothing: everything is in the description."""

    def build(self) -> nn.Module:
        """The model with random weights."""
        model = build_model(self.experiment.model, len(self.task.categories))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions like it
        return model

    def initialise(self, model: nn.Module) -> str:
        """Fills the model with the weights it starts from, and says which."""
        our_model = cast(Model, model)
        return load_initial(our_model, self.experiment.model.backbone, self.task.categories, self.initial)

    def stream(self, *, start_step: int, rank: int, world: int, pin_memory: bool) -> Stream[Batch]:
        """Augmented batches."""
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
        """Pictures."""
        return sum(len(batch.targets) for batch in batches)

    def targets(self, batches: Sequence[Batch]) -> int:
        """Segments or boxes to find."""
        return count_targets(batches)

    def criterion(self, device: torch.device, average: Average) -> Callable[[Batch, int, int], LossOfBatch]:
        """Matching and losses on masks, on boxes, or on both."""
        kind, count = kind_of(self.experiment.model), len(self.task.categories)
        criterion = build_criterion(self.experiment.losses, count, average, kind=kind).to(device)
        prepare: Callable[[Batch], Batch] = box_mask_targets if kind == "boxes_and_masks" else _as_it_is

        def measure(batch: Batch, step: int, seed: int) -> LossOfBatch:
            uniform = uniform_source(seed, device)
            forward = forward_in_step(self.experiment, step, uniform)
            return LossOfBatch(to_device(prepare(batch), device), criterion, uniform, forward)

        return measure

    def evaluate(
        self, model: nn.Module, progress: Callable[[int, int], None], *, rank: int, world: int
    ) -> TaskMetrics:
        """The metrics of the task over this process's share of the val split."""
        our_model = cast(Model, model)
        device = next(our_model.parameters()).device
        about = self._model_file("in training")
        return evaluate_model(our_model, about, self.task, device, progress, rank=rank, world=world)

    def headline(self, values: Mapping[str, float]) -> str:
        """The most important of all metrics, in one line."""
        return self.task.headline(values)

    def save(self, folder: Path, model: nn.Module, provenance: str) -> None:
        """Writes a model folder."""
        save_model(folder, cast(Model, model), self._model_file(provenance))

    def _model_file(self, provenance: str) -> ModelFile:
        return ModelFile(
            experiment=self.experiment,
            categories=self.task.categories,
            licence=self.licence,
            provenance=provenance,
        )


def _as_it_is(batch: Batch) -> Batch:
    """Nothing to add to the targets."""
    return batch

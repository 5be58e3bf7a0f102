"""Training beside transformers: the same initial weights, batches and schedule, and what each side learns.

`python -m benchmarks.learning --data camvid11 --task semantic --steps 1000 --seeds 3 --output runs/learning`
writes `TASK.json`, `TASK.md` and `TASK.svg`. The model is a small Mask2Former with a Swin and random weights.
transformers trains it in a plain loop of PyTorch, with its own losses and matcher; ours is trained with the
criterion, the optimiser and the schedule of `unimask train`. Only the random points at which masks are
compared differ. Both are evaluated by the same code, for which theirs is converted.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
from transformers.utils import logging

from benchmarks.learning_report import Run, write
from benchmarks.settings import progress
from unimask.checkpoints.images import ModelFile
from unimask.config.data import DataConfig, Scale, ScaleJitter, Tiles
from unimask.config.images import Experiment, PostprocessConfig
from unimask.config.models import PixelDecoderConfig, QueryDecoderConfig
from unimask.config.tasks import Task
from unimask.config.training import LossConfig, TrainingConfig
from unimask.conversion import hugging_face
from unimask.conversion.rules import to_ours
from unimask.data.loader import training_loader
from unimask.inference.evaluation import measure
from unimask.inference.segmenter import Segmenter
from unimask.losses.build import build_criterion
from unimask.models.build import VISIBILITY, build_pixel_decoder, build_query_decoder
from unimask.models.mask_classifier import MaskClassifier
from unimask.models.memory import spare_memory
from unimask.nn.swin import Swin
from unimask.structures import Batch, Categories
from unimask.training.image_data import TrainingTask, open_task
from unimask.training.optimizer import build_optimizer, set_learning_rate
from unimask.training.schedule import learning_rate_factor
from unimask.training.step import random_seed, uniform_source

CHANNELS, HEADS, HIDDEN, LAYERS, ENCODER_LAYERS = 64, 4, 128, 3, 2
EMBED, DEPTHS, SWIN_HEADS, WINDOW = 24, (1, 1, 2, 1), (1, 2, 4, 8), 4
MEASURES = {"semantic": "mIoU", "panoptic": "PQ", "instance": "AP@0.50"}


class Side(Protocol):
    """A model in training."""

    def step(self, batch: Batch, number: int) -> float:
        """Train on a batch, in step `number` (from 0); return the loss."""

    def ours(self) -> nn.Module:
        """Return the model as one of ours, to be evaluated."""


def experiment_of(task: Task, steps: int, points: int) -> Experiment:
    """Return the settings that both sides share."""
    cells = DataConfig(
        crop=(128, 128),
        jitter=ScaleJitter(low=0.8, high=1.4, relative_to="file"),
        vertical_flip=0.5,
        resize=Scale(factor=1.0),
        view=Tiles(size=128, overlap=48),
    )
    street = DataConfig(
        crop=(96, 128), jitter=ScaleJitter(low=0.3, high=0.6, relative_to="file"), resize=Scale(factor=1 / 3)
    )
    return Experiment(
        data=street if task == "semantic" else cells,
        losses=LossConfig(points=points),
        postprocess=PostprocessConfig(object_threshold=0.5, instance_threshold=0.5, duplicate_iou=0.5),
        training=TrainingConfig(
            steps=steps,
            batch_size=4,
            learning_rate=5e-4,
            backbone_multiplier=0.5,
            schedule="poly",
            warmup_steps=min(50, steps // 4),
            evaluate_every=max(1, steps // 4),
            workers=0,
        ),
    )


def their_model(classes: int, queries: int, losses: LossConfig, seed: int) -> nn.Module:
    """Return a small Mask2Former of transformers with random weights, as it makes them."""
    torch.manual_seed(seed)
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(
            embed_dim=EMBED,
            depths=list(DEPTHS),
            num_heads=list(SWIN_HEADS),
            window_size=WINDOW,
            drop_path_rate=0.0,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        num_labels=classes,
        feature_size=CHANNELS,
        mask_feature_size=CHANNELS,
        hidden_dim=CHANNELS,
        encoder_feedforward_dim=HIDDEN,
        dim_feedforward=HIDDEN,
        num_attention_heads=HEADS,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=LAYERS + 1,
        num_queries=queries,
        train_num_points=losses.points,
        oversample_ratio=losses.oversampling,
        importance_sample_ratio=losses.importance,
        class_weight=losses.class_weight,
        mask_weight=losses.mask_weight,
        dice_weight=losses.dice_weight,
        no_object_weight=losses.no_object_weight,
        dropout=0.0,
    )
    return Mask2FormerForUniversalSegmentation(config)


def converted(theirs: nn.Module, classes: int, queries: int) -> MaskClassifier:
    """Return a model of ours with the weights of theirs."""
    backbone = Swin(embed_channels=EMBED, depths=DEPTHS, heads=SWIN_HEADS, window=WINDOW, drop_path_rate=0.0)
    pixel = PixelDecoderConfig(
        channels=CHANNELS,
        mask_channels=CHANNELS,
        layers=ENCODER_LAYERS,
        heads=HEADS,
        feedforward_channels=HIDDEN,
    )
    query = QueryDecoderConfig(
        queries=queries, channels=CHANNELS, heads=HEADS, feedforward_channels=HIDDEN, layers=LAYERS
    )
    memory = dict.fromkeys((32, 16, 8), CHANNELS)
    model = MaskClassifier(
        backbone,
        build_pixel_decoder(pixel, backbone.channels),
        build_query_decoder(query, memory, CHANNELS, classes),
        VISIBILITY["masked"],
    )
    state = {name: tensor.detach().clone() for name, tensor in theirs.state_dict().items()}
    tensors = hugging_face.MASK2FORMER.current_names(state)
    model.load_state_dict(to_ours(tensors, hugging_face.MASK2FORMER.rules).tensors)
    return model


class OurSide:
    """Ours, with what `unimask train` trains with."""

    name = "unimask"

    def __init__(self, model: MaskClassifier, experiment: Experiment, classes: int, seed: int) -> None:
        self.model, self.config, self.seed = model.train(), experiment.training, seed
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        spare_memory(self.model)
        self.criterion = build_criterion(experiment.losses, classes)
        self.optimizer = build_optimizer(self.model, self.config)

    def step(self, batch: Batch, number: int) -> float:
        set_learning_rate(self.optimizer, number, self.config)
        uniform = uniform_source(random_seed(self.seed, number), torch.device("cpu"))
        prediction = self.model(batch.images.pixels, batch.images.valid)
        total = self.criterion(prediction, batch.targets, uniform).total
        _update(total, self.model, self.optimizer, self.config)
        return float(total.detach())

    def ours(self) -> nn.Module:
        return self.model


class TheirSide:
    """A plain loop of PyTorch around transformers' model and losses."""

    name = "transformers"

    def __init__(self, model: nn.Module, experiment: Experiment, classes: int, queries: int) -> None:
        self.model, self.config = model.train(), experiment.training
        self.classes, self.queries = classes, queries
        self.optimizer = torch.optim.AdamW(_their_groups(model, self.config), betas=self.config.betas)

    def step(self, batch: Batch, number: int) -> float:
        factor = learning_rate_factor(number, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
        masks = [target.masks().float() for target in batch.targets]
        labels = [target.labels for target in batch.targets]
        output = self.model(pixel_values=batch.images.pixels, mask_labels=masks, class_labels=labels)
        total = output.loss.squeeze()
        _update(total, self.model, self.optimizer, self.config)
        return float(total.detach())

    def ours(self) -> nn.Module:
        return converted(self.model, self.classes, self.queries)


def _their_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """Group their parameters as the original does: norms and embeddings do not decay."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            embedding = isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.Embedding)
            decays = not (embedding or name == "relative_position_bias_table")
            backbone = module_name.startswith("model.pixel_level_module.encoder")
            groups.setdefault((backbone, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "full_rate": config.learning_rate * (config.backbone_multiplier if backbone else 1.0),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (backbone, decays), parameters in groups.items()
    ]


def _update(
    total: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainingConfig
) -> None:
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
    optimizer.step()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is trained."""

    task: TrainingTask
    experiment: Experiment
    queries: int
    images: int  # images of val that are evaluated

    @property
    def classes(self) -> int:
        return len(self.task.categories)

    def sides(self, seed: int) -> tuple[OurSide, TheirSide]:
        """Return both sides with the same weights."""
        theirs = their_model(self.classes, self.queries, self.experiment.losses, seed)
        ours = converted(theirs, self.classes, self.queries)
        return (
            OurSide(ours, self.experiment, self.classes, seed),
            TheirSide(theirs, self.experiment, self.classes, self.queries),
        )

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield the batches of a seed; those with an image without targets are left out for both."""
        backbone = self.experiment.model.backbone
        for batch in training_loader(
            self.task.training,
            self.experiment.data,
            mean=backbone.image_mean,
            std=backbone.image_std,
            batch_size=self.experiment.training.batch_size,
            seed=seed,
        ):
            if all(len(target) for target in batch.targets):
                yield batch

    def evaluate(self, model: nn.Module) -> float:
        """Return the measure of the task on val."""
        categories: Categories = self.task.categories
        model_file = ModelFile(
            experiment=self.experiment,
            categories=categories,
            task=self.task.task,
            licence="",
            provenance="in training",
        )
        was_training = model.training
        segmenter = Segmenter(model.eval(), model_file)
        indices = range(min(self.images, len(self.task.validation)))
        metrics = measure(segmenter, self.task.validation, self.task.task, indices)
        model.train(was_training)
        return float(metrics.compute().values[MEASURES[self.task.task]])


def learn(comparison: Comparison, seed: int) -> tuple[Run, Run]:
    """Train both sides on the same batches, step by step in turn."""
    torch.manual_seed(seed)  # their points come from the global generator
    config = comparison.experiment.training
    sides = comparison.sides(seed)
    losses: dict[str, list[float]] = {side.name: [] for side in sides}
    seconds = dict.fromkeys(losses, 0.0)
    measured: dict[str, list[tuple[int, float]]] = {side.name: [] for side in sides}
    batches = comparison.batches(seed)
    for number in range(config.steps):
        batch = next(batches)
        for side in sides if number % 2 else sides[::-1]:
            start = time.process_time()
            losses[side.name].append(side.step(batch, number))
            seconds[side.name] += time.process_time() - start
        if (number + 1) % config.evaluate_every == 0 or number + 1 == config.steps:
            for side in sides:
                measured[side.name].append((number + 1, comparison.evaluate(side.ours())))
            said = ", ".join(
                f"{s.name} {losses[s.name][-1]:.2f} {measured[s.name][-1][1]:.3f}" for s in sides
            )
            progress(f"seed {seed}, step {number + 1}: {said}")
    ours, theirs = (
        Run(
            side=side.name,
            seed=seed,
            losses=tuple(losses[side.name]),
            measured=tuple(measured[side.name]),
            seconds_per_step=seconds[side.name] / config.steps,
        )
        for side in sides
    )
    return ours, theirs


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", choices=tuple(MEASURES), default="semantic")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--points", type=int, default=784)
    parser.add_argument("--images", type=int, default=50, help="of val, for evaluation")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    logging.set_verbosity_error()
    experiment = experiment_of(given.task, given.steps, given.points)
    task = open_task(given.data, given.task, experiment)
    comparison = Comparison(task=task, experiment=experiment, queries=given.queries, images=given.images)
    runs: list[Run] = []
    for seed in range(given.seeds):
        seeded = replace(experiment, training=replace(experiment.training, seed=seed))
        runs += learn(replace(comparison, experiment=seeded), seed)
        write(given.output, given.task, runs, MEASURES[given.task])
    print((given.output / f"{given.task}.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

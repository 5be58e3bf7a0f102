"""The training loop: the only file that knows the training engine (lightning-fabric)."""

import math
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor

import unimask
from unimask.checkpoint import ModelFile, save_model
from unimask.config import Experiment, ModelConfig, Task
from unimask.data.loader import training_loader
from unimask.losses.build import build_box_criterion, build_criterion, build_pixel_criterion
from unimask.models.build import build_model
from unimask.structures import Batch
from unimask.training.average import MovingAverage
from unimask.training.checks import check_device, check_model, check_settings
from unimask.training.initial import load_initial
from unimask.training.machine import describe_machine
from unimask.training.optimizer import build_optimizer, set_learning_rate
from unimask.training.processes import first_alone, first_says, gather, sum_of_all
from unimask.training.progress import Reporter, SilentReporter, automatic_reporter
from unimask.training.record import RunRecord
from unimask.training.result import TrainingError, TrainingResult
from unimask.training.run_folder import RunFolder
from unimask.training.speed import Window, report_step
from unimask.training.step import (
    LossModule,
    LossOfBatch,
    NormStatistics,
    count_targets,
    random_seed,
    to_device,
    uniform_source,
)
from unimask.training.stopping import deaf_children, stop_signals
from unimask.training.task import TrainingTask, describe_run, evaluate_model, open_task

LARGEST_SKIPS = 20  # so many skipped steps in a row end the training
_PATIENCE = timedelta(hours=1)  # how long processes wait for the slowest one


def train(
    experiment: Experiment,
    task: Task,
    data: str | Path,
    output: str | Path,
    *,
    resume: bool = False,
    initial: str | Path | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    reporter: Reporter | None = None,
    licence: str = "not stated",
) -> TrainingResult:
    """Trains a model and leaves everything about it in the folder `output` (see `training/run_folder.py`).

    `resume` continues the run in `output` after a stop or a kill at any moment, exactly as if it had never
    stopped; where there is nothing yet, it starts. The experiment must be the same but for the length
    (`training.steps`; the schedule then stretches from there on), bookkeeping and `training.accumulate`.
    `initial` says where weights start: None is random, `imagenet` takes the backbone's weights from ImageNet,
    anything else is a model folder, or a model of the package, to fine-tune. `device` is auto, cpu, cuda,
    cuda:1 or mps. With several `devices` or `nodes` each process runs the calling script (the engine starts
    those of this machine; `torchrun` or a cluster's scheduler can); `output` must be a folder that all see.
    Ctrl-C, or for a single process SIGTERM, ends the run after the step with a checkpoint; twice, at once.

    Raises:
        DataError: the data or the run folder cannot be used as asked.
        ConfigError: a setting is impossible, or differs from that of the run to resume.
        WeightsError: the initial weights do not fit.
        TrainingError: too many steps in a row were not finite.
    """
    check_settings(experiment.training, task, devices * nodes)
    check_model(experiment.model, task)
    accelerator, selected = check_device(device, devices, experiment.training.precision)
    fabric = Fabric(
        accelerator=accelerator,
        devices=selected,
        num_nodes=nodes,
        strategy=DDPStrategy(timeout=_PATIENCE) if devices * nodes > 1 else "auto",
        precision=experiment.training.precision,
    )
    fabric.launch()
    shown = (reporter or automatic_reporter()) if fabric.is_global_zero else SilentReporter()
    opened = open_task(data, task, experiment)
    folder = RunFolder(Path(output))
    first_alone(lambda: folder.begin(describe_run(experiment, opened), resume=resume))
    training = _Training(fabric, experiment, opened, folder, shown, initial=initial, licence=licence)
    with stop_signals(training.ask_to_stop, fabric.world_size):
        return training.run()


class _Training:
    """A run: the state that changes from step to step, and what changes it."""

    def __init__(
        self,
        fabric: Fabric,
        experiment: Experiment,
        task: TrainingTask,
        folder: RunFolder,
        reporter: Reporter,
        *,
        initial: str | Path | None,
        licence: str,
    ) -> None:
        self.fabric, self.experiment, self.config = fabric, experiment, experiment.training
        self.task, self.folder, self.reporter, self.licence = task, folder, reporter, licence
        state = folder.latest_checkpoint()
        torch.manual_seed(self.config.seed)
        model = build_model(experiment.model, len(task.categories))
        self.origin = (
            str(state["origin"])
            if state
            else load_initial(model, experiment.model.backbone, task.categories, initial)
        )
        if state:
            model.load_state_dict(state["model"])
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions like it
        self.model = model.train()
        self.statistics = NormStatistics(model)
        optimizer = build_optimizer(model, self.config)
        self.module, self.optimizer = fabric.setup(LossModule(model), optimizer)
        self.average = MovingAverage(model, self.config.ema_decay) if self.config.ema_decay > 0 else None
        self.targets_per_pass = torch.ones((), device=fabric.device)
        of_masks = {"masks": build_criterion, "pixels": build_pixel_criterion}
        described = experiment.model
        build = (
            of_masks[described.classification] if isinstance(described, ModelConfig) else build_box_criterion
        )
        self.criterion = build(
            experiment.losses, len(task.categories), average=lambda count: self.targets_per_pass
        ).to(fabric.device)
        self.step, self.skipped, self.skipped_in_row, self.seconds_before = 0, 0, 0, 0.0
        self.window, self.losses_of_step = Window(), dict[str, float]()
        if state:
            self._restore(state)
        self.started = time.monotonic()
        self.evaluation_seconds = 0.0
        self.stop_asked = self.stopped = False
        self.record = RunRecord(folder, self.step, task.primary_metric) if fabric.is_global_zero else None
        self.stream = self._stream()

    def ask_to_stop(self) -> None:
        """Ends the run after the step that is under way."""
        self.stop_asked = True

    def run(self) -> TrainingResult:
        """All steps that are left, with checkpoints and evaluations on the way."""
        self.reporter.start(steps=self.config.steps, done=self.step)
        try:
            if self.step:
                self._evaluate_if_due()
            while self.step < self.config.steps and not self.stopped:
                self._advance()
                if self.step % self.config.checkpoint_every == 0 or self._at_end() or self.stopped:
                    self._save_checkpoint()
                if not self.stopped or self._at_end():
                    self._evaluate_if_due()
            return self._finish()
        finally:
            self.reporter.stop()
            self.source.close()  # its workers are deaf to signals: nothing else would end them at exit
            if self.record is not None:
                self.record.close()

    def _at_end(self) -> bool:
        return self.step >= self.config.steps

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    # one step

    def _stream(self) -> Iterator[Batch]:
        config, backbone, world = self.config, self.experiment.model.backbone, self.fabric.world_size
        self.source = training_loader(
            self.task.training,
            self.experiment.data,
            mean=backbone.image_mean,
            std=backbone.image_std,
            batch_size=config.batch_size // (world * config.accumulate),
            seed=config.seed,
            start_step=self.step * config.accumulate,
            rank=self.fabric.global_rank,
            world=world,
            workers=config.workers,
            pin_memory=self.fabric.device.type == "cuda",
        )
        with deaf_children():  # the first batch starts the workers
            first = () if self._at_end() else (next(self.source),)
        return chain(first, self.source)

    def _advance(self) -> None:
        started = time.monotonic()
        rate = set_learning_rate(self.optimizer, self.step, self.config)
        batches = [next(self.stream) for _ in range(self.config.accumulate)]
        self.statistics.keep()
        problems = self._gradients(batches) or self._update()
        if problems:
            self.statistics.bring_back()
        self.step += 1
        self.window.add_time(self.config.batch_size, time.monotonic() - started)
        self._note_skip(problems)
        self._report(rate)

    def _gradients(self, batches: list[Batch]) -> tuple[str, ...]:
        """Adds up the gradients of the passes of a step; gives what was not finite, and then takes none."""
        count = torch.tensor(float(count_targets(batches)), device=self.fabric.device)
        self.targets_per_pass = sum_of_all(count) / (len(batches) * self.fabric.world_size)
        self.losses_of_step = {}
        for index, batch in enumerate(batches):
            seed = random_seed(self.config.seed, self.step, index, self.fabric.global_rank)
            torch.manual_seed(seed)  # dropout and stochastic depth
            measure = LossOfBatch(
                to_device(batch, self.fabric.device), self.criterion, uniform_source(seed, self.fabric.device)
            )
            last = index + 1 == len(batches)
            with self.fabric.no_backward_sync(self.module, enabled=not last):
                losses: dict[str, Tensor] = self.module(measure)
                problems = self._agree(measure, losses, len(batches))
                if problems:
                    self.optimizer.zero_grad()
                    return problems
                self.fabric.backward(losses["total"] / len(batches))
            del measure, losses  # the prediction need not live beside the next one
        return ()

    def _agree(self, measure: LossOfBatch, losses: dict[str, Tensor], passes: int) -> tuple[str, ...]:
        """What is not finite in any process. Also sums losses, and hears whether a process shall stop."""
        values = torch.stack([value.detach().float() for value in losses.values()])
        bad = (~torch.isfinite(values).all()).float()
        stop = torch.tensor(float(self.stop_asked), device=values.device)
        shared = sum_of_all(torch.cat([torch.stack([bad, stop]), values.nan_to_num(0.0, 0.0, 0.0)])).tolist()
        self.stopped = self.stopped or shared[1] > 0
        if shared[0] > 0:
            return tuple(text for text in gather(measure.problem() if bad else "") if text)
        for name, value in zip(losses, shared[2:], strict=True):
            mean = value / (passes * self.fabric.world_size)
            self.losses_of_step[name] = self.losses_of_step.get(name, 0.0) + mean
        return ()

    def _update(self) -> tuple[str, ...]:
        """Clips and steps; gives what was not finite. With float16 that lowers the loss scale."""
        clip = self.config.gradient_clip
        total = self.fabric.clip_gradients(
            self.module, self.optimizer, max_norm=clip, error_if_nonfinite=False
        )
        assert total is not None  # only an engine that shards the model has no norm to give
        norm = float(total)
        finite = math.isfinite(norm)
        if finite or self.config.precision == "16-mixed":
            self.optimizer.step()
        self.optimizer.zero_grad()
        if not finite:
            return ("the gradient",)
        if self.average is not None:
            self.average.update(self.model, self.step - self.skipped)
        self.window.add_update(self.losses_of_step, norm)
        return ()

    def _note_skip(self, problems: tuple[str, ...]) -> None:
        if not problems:
            self.skipped_in_row = 0
            return
        self.skipped += 1
        self.skipped_in_row += 1
        text = "; ".join(problems)
        self.reporter.message(f"step {self.step} is skipped, not finite: {text}")
        if self.record is not None:
            self.record.log_skip(self.step, problems)
        if self.skipped_in_row >= LARGEST_SKIPS:
            raise TrainingError(
                f"{self.folder.path}: {self.skipped_in_row} steps in a row were not finite, the last one: "
                f"{text}; lower training.learning_rate, take bf16-mixed or 32-true as training.precision, or "
                "look at the pictures"
            )

    def _report(self, rate: float) -> None:
        logged = self.step % self.config.log_every == 0 or self._at_end()
        report = report_step(
            self.window, self.step, self.config, rate, self.evaluation_seconds, logged=logged
        )
        self.reporter.step(report)
        if logged:
            if self.record is not None:
                self.record.log_step(self.step, self.window.as_record(rate, self.skipped, self._seconds()))
            self.window = Window()

    # evaluations and checkpoints

    def _evaluate_if_due(self) -> None:
        every = self.config.evaluate_every
        if every <= 0 or not (self.step % every == 0 or self._at_end()):
            return
        known = self.record is not None and self.record.has_evaluation(self.step)
        if not first_says(known):
            self._evaluate()

    def _evaluate(self) -> None:
        """Each process measures its share of the pictures; the first one adds them up and writes."""
        started = time.monotonic()
        model = self.average.model if self.average is not None else self.model
        share = evaluate_model(
            model,
            self._model_file(),
            self.task,
            self.fabric.device,
            self.reporter.evaluating,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )
        metrics, *others = gather(share)
        record = self.record
        if record is None:
            return
        for other in others:
            metrics.merge(other)
        values = dict(metrics.compute().values)
        if record.is_better(values):
            save_model(self.folder.best, model, self._model_file())
        self.evaluation_seconds = time.monotonic() - started
        record.log_evaluation(self.step, values, self.evaluation_seconds)
        self.reporter.message(f"evaluation after step {self.step}: {self.task.headline(values)}")

    def _model_file(self) -> ModelFile:
        return ModelFile(
            experiment=self.experiment,
            categories=self.task.categories,
            licence=self.licence,
            provenance=(
                f"trained with unimask {unimask.__version__} on {Path(self.task.data).name} "
                f"({self.task.task}, {len(self.task.training)} pictures), step {self.step}; "
                f"initial weights: {self.origin}"
            ),
        )

    def _save_checkpoint(self) -> None:
        if self.fabric.is_global_zero:
            average = self.average.model if self.average is not None else None
            self.folder.save_checkpoint(
                self.step,
                {
                    "step": self.step,
                    "skipped": self.skipped,
                    "skipped_in_row": self.skipped_in_row,
                    "seconds": self._seconds(),
                    "origin": self.origin,
                    "model": self.model.state_dict(),
                    "average": average.state_dict() if average is not None else {},
                    "optimizer": self.optimizer.state_dict(),
                    "precision": self.fabric.strategy.precision.state_dict(),
                    "window": self.window.state(),
                },
            )
            save_model(self.folder.model, average if average is not None else self.model, self._model_file())
        self.fabric.barrier()

    def _restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step, self.skipped = int(state["step"]), int(state["skipped"])
        self.skipped_in_row, self.seconds_before = int(state["skipped_in_row"]), float(state["seconds"])
        self.window = Window(**state["window"])

    def _finish(self) -> TrainingResult:
        seconds = self._seconds()
        if self.record is not None and self._at_end():
            counts = {"steps": self.step, "skipped_steps": self.skipped, "seconds": seconds}
            machine = describe_machine(self.fabric.device)
            self.folder.write_results(
                {**self.record.summary(), **counts, "processes": self.fabric.world_size, **machine}
            )
        elif not self._at_end():
            self.reporter.message(
                f"stopped after step {self.step}; resume the run in {self.folder.path} to go on"
            )
        none: dict[str, float] = {}
        record = self.record
        known = (record.best_step(), record.last(), record.best()) if record is not None else (0, none, none)
        best_step, final, best = first_says(known)
        return TrainingResult(
            output=self.folder.path,
            steps=self.step,
            completed=self._at_end(),
            final=final,
            best=best,
            best_step=best_step,
            skipped_steps=self.skipped,
            seconds=seconds,
            first_process=self.fabric.is_global_zero,
        )

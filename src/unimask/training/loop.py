"""The training loop: steps, evaluations and checkpoints, in one process or in several."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.distributed.tensor import DTensor

import unimask
from unimask.checkpoints.tensors import fill
from unimask.config.training import TrainingConfig
from unimask.errors import UnimaskError
from unimask.files import remove
from unimask.machine import command_line, describe_machine
from unimask.models.memory import spare_memory
from unimask.processes import first_alone, first_says, gather, sum_of_all
from unimask.training.engine import Machines, lost_processes_said, start_engine
from unimask.training.job import AnyJob, Measure
from unimask.training.learner import Learner
from unimask.training.loggers import Logger
from unimask.training.optimizer import set_learning_rate
from unimask.training.progress import Reporter, SilentReporter, automatic_reporter
from unimask.training.record import RunRecord, Value
from unimask.training.restoring import check_average, check_description, check_optimizer, check_parts
from unimask.training.result import TrainingError, TrainingResult
from unimask.training.run_folder import DESCRIPTION_NAME, RunFolder, nothing_left_behind
from unimask.training.speed import Window, report_step
from unimask.training.step import random_seed
from unimask.training.stopping import stop_signals, without_signals

T = TypeVar("T")
LARGEST_SKIPS = 20  # this many skipped steps in a row end the training


def run_job(
    open_job: Callable[[], AnyJob],
    config: TrainingConfig,
    machines: Machines,
    output: str | Path,
    *,
    resume: bool,
    reporter: Reporter | None,
    loggers: Sequence[str | Logger] = (),
) -> TrainingResult:
    """Train a job, which is opened in each process after they have been started.

    Raises:
        DataError, ConfigError, WeightsError, TrainingError: see `run.train`.
    """
    fabric = start_engine(config, machines)
    shown = (reporter or automatic_reporter()) if fabric.is_global_zero else SilentReporter()
    job = open_job()
    folder = RunFolder(Path(output))
    started: list[_Training] = []

    def begin() -> None:
        about = {"unimask": unimask.__version__, "command": command_line()}
        folder.begin(about | job.describe(), resume=resume)
        if not folder.has_checkpoint():
            job.begin(folder, shown.message)

    def steps() -> int:
        return started[0].step if started else 0

    alone = nothing_left_behind(folder.path, steps) if fabric.is_global_zero else nullcontext()
    with alone, closing(folder), lost_processes_said(folder.path, folder.newest_step):
        first_alone(begin)
        started.append(_Training(fabric, job, folder, shown, loggers))
        with stop_signals(started[0].ask_to_stop, fabric.world_size):
            return started[0].run()


class _Training:
    """A run: its state and the steps that change it."""

    def __init__(
        self,
        fabric: Fabric,
        job: AnyJob,
        folder: RunFolder,
        reporter: Reporter,
        loggers: Sequence[str | Logger],
    ) -> None:
        self.fabric, self.job, self.config = fabric, job, job.training
        self.folder, self.reporter = folder, reporter
        state = folder.latest_checkpoint(reporter.message)
        torch.manual_seed(self.config.seed)
        model = job.build()
        if state:
            check_parts(folder.taken, state)
            check_description(folder, state.get("description"), job.describe())
        self.origin = str(state["origin"]) if state else job.initialise(model, reporter.message)
        if "model" in state:
            fill(model, state["model"], folder.taken, described_in=DESCRIPTION_NAME)
        if fabric.device.type == "cpu":
            spare_memory(model)
        if "average" in state and self.config.ema_decay > 0:
            check_average(folder.taken, model, state["average"])
        self.learner = Learner(fabric, model, self.config, job.build, state.get("average"))
        self.targets_per_pass = torch.ones((), device=fabric.device)
        self.criterion = job.criterion(fabric.device, lambda count: self.targets_per_pass)
        self.step, self.skipped, self.skipped_in_row, self.seconds_before = 0, 0, 0, 0.0
        self.window, self.losses_of_step = Window(), dict[str, float]()
        if state:
            self._restore(state)
        self.saved = self.step  # the step of the newest checkpoint
        self.started = time.monotonic()
        self.evaluation_seconds = 0.0
        self.stop_asked = self.stopped = False
        self.record = (
            RunRecord(
                folder, self.step, job.primary_metric, reporter.message, loggers, best=state.get("best")
            )
            if fabric.is_global_zero
            else None
        )
        self.stream = self._stream()

    def ask_to_stop(self) -> None:
        """End the run after the current step."""
        self.stop_asked = True

    def run(self) -> TrainingResult:
        """Run all remaining steps, with checkpoints and evaluations on the way."""
        self.reporter.start(steps=self.config.steps, done=self.step)
        try:
            if self.step:
                self._make_models_again()
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
            self.source.close()  # its workers ignore signals: nothing else would end them at exit
            if self.record is not None:
                self.record.close()

    def _at_end(self) -> bool:
        return self.step >= self.config.steps

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    # one step

    def _stream(self) -> Iterator[Any]:
        self.source = self.job.stream(
            start_step=self.step * self.config.accumulate,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            pin_memory=self.fabric.device.type == "cuda",
        )
        with without_signals():  # the first batch starts the workers
            first = () if self._at_end() else (next(self.source),)
        return chain(first, self.source)

    def _advance(self) -> None:
        started = time.monotonic()
        rate = set_learning_rate(self.learner.optimizer, self.step, self.config)
        batches = self._agreed(lambda: [next(self.stream) for _ in range(self.config.accumulate)])
        self.learner.statistics.keep()
        problems = self._computed(batches) or self._update()
        if problems:
            self.learner.statistics.bring_back()
        self.step += 1
        items = self.job.items(batches) * self.fabric.world_size
        self.window.add_time(items, time.monotonic() - started)
        self._log_skip(problems)
        self._report(rate)

    def _computed(self, batches: list[Any]) -> tuple[str, ...]:
        """Add up the gradients of a step; where that fails (out of memory), save the steps before it.

        Several processes cannot: the others wait for this one inside of the engine.
        """
        try:
            return self._gradients(batches)
        except Exception:
            if self.fabric.world_size == 1:
                self.learner.statistics.bring_back()
                self._keep_the_work()
            raise

    def _gradients(self, batches: list[Any]) -> tuple[str, ...]:
        """Add up the gradients of the passes of a step; return what was not finite, and then no gradients."""
        count = torch.tensor(float(self.job.targets(batches)), device=self.fabric.device)
        self.targets_per_pass = sum_of_all(count) / (len(batches) * self.fabric.world_size)
        self.losses_of_step = {}
        for index, batch in enumerate(batches):
            seed = random_seed(self.config.seed, self.step, index, self.fabric.global_rank)
            torch.manual_seed(seed)  # dropout and stochastic depth
            measure = self.criterion(batch, self.step, seed)
            with self.learner.backward_pass(last=index + 1 == len(batches)):
                losses: dict[str, Tensor] = self.learner.module(measure)
                problems = self._agree(measure, losses, len(batches))
                if problems:
                    self.learner.forget()
                    return problems
                self.fabric.backward(losses["total"] / len(batches))
            del measure, losses  # frees the prediction before the next one
        return ()

    def _agree(self, measure: Measure, losses: dict[str, Tensor], passes: int) -> tuple[str, ...]:
        """Return what is not finite in any process; also sum losses, and ask whether one must stop."""
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
        """Clip and step; return what was not finite, which with float16 lowers the loss scale."""
        clip = self.config.gradient_clip
        total = self.fabric.clip_gradients(
            self.learner.module, self.learner.optimizer, max_norm=clip, error_if_nonfinite=False
        )
        assert total is not None  # only strategies that are not used have no norm to give
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        finite = math.isfinite(norm)
        if finite or self.config.precision == "16-mixed":
            self.learner.optimizer.step()
        self.learner.optimizer.zero_grad()
        if not finite:
            return ("the gradient",)
        self.learner.follow()
        self.window.add_update(self.losses_of_step, norm)
        return ()

    def _log_skip(self, problems: tuple[str, ...]) -> None:
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
            self._keep_the_work()
            raise TrainingError(
                f"{self.folder.path}: {self.skipped_in_row} steps in a row were not finite, the last one: "
                f"{text}; lower training.learning_rate, take bf16-mixed or 32-true as training.precision, or "
                "look at the data"
            )

    def _report(self, rate: float) -> None:
        logged = self.step % self.config.log_every == 0 or self._at_end()
        report = report_step(
            self.window,
            self.step,
            self.config,
            rate,
            self.evaluation_seconds,
            unit=self.job.unit,
            logged=logged,
        )
        self.reporter.step(report)
        if logged:
            if self.record is not None:
                values = self.window.as_record(rate, self.skipped, self._seconds(), unit=self.job.unit)
                self.record.log_step(self.step, values)
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
        """Measure this process's share of the data; the first process adds them up and writes."""
        started = time.monotonic()
        model = self.learner.weights(everywhere=True)
        was_training = model.training
        rank, world = self.fabric.global_rank, self.fabric.world_size
        share = self._agreed(
            lambda: self.job.evaluate(model.eval(), self.reporter.evaluating, rank=rank, world=world)
        )
        model.train(was_training)
        metrics, *others = gather(share)
        record = self.record
        if record is None:
            return
        for other in others:
            metrics.merge(other)
        measured = metrics.compute()
        values = dict(measured.values)
        if record.is_better(values):
            self.job.save(self.folder.best, model, self._provenance())
        self.evaluation_seconds = time.monotonic() - started
        draw = partial(self.job.draw, metrics, self.step)
        record.log_evaluation(self.step, values, self.evaluation_seconds, measured.per_category, draw)
        self.reporter.message(f"evaluation after step {self.step}: {self.job.headline(values)}")

    def _provenance(self) -> str:
        return (
            f"trained with unimask {unimask.__version__} on {self.job.source}, step {self.step}; "
            f"initial weights: {self.origin}"
        )

    def _save_checkpoint(self) -> None:
        model = self.learner.weights()
        state = {
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
            "seconds": self._seconds(),
            "origin": self.origin,
            "window": self.window.state(),
            "description": self.job.describe(),
            "best": None if self.record is None else self.record.best_line(),
            **self.learner.state(),
        }

        def write(save_parts: Callable[[Path], None]) -> None:
            self.folder.save_checkpoint(self.step, state, save_parts)
            self.job.save(self.folder.model, model, self._provenance())

        self.learner.save_in_parts(write)
        self.saved = self.step

    def _make_models_again(self) -> None:
        """Restore from the checkpoint the models that a kill may have left stale or missing."""
        model = self.learner.weights()
        if self.record is None:
            return
        self.job.save(self.folder.model, model, self._provenance())
        best = self.record.best_step()
        if best == self.step:
            self.job.save(self.folder.best, model, self._provenance())
        elif best:
            self.folder.restore_best(self.step)
        else:
            remove(self.folder.best)
        if not self._at_end():
            remove(self.folder.results)

    def _agreed(self, action: Callable[[], T]) -> T:
        """Return the result of the action in this process.

        Where it fails in any process, all of them save a checkpoint and end, the failing one with its error.
        """
        result: list[T] = []
        error: Exception | None = None
        try:
            result.append(action())
        except Exception as caught:
            error = caught
        failed = error is not None
        if self.fabric.world_size > 1:
            failed = bool(sum_of_all(torch.tensor(float(failed), device=self.fabric.device)) > 0)
        if failed:
            self._keep_the_work()
            if error is None:
                sys.exit(2)
            raise error
        return result[0]

    def _keep_the_work(self) -> None:
        """Write a checkpoint of all steps that are done, because an error ends the run."""
        if self.step == self.saved:
            return
        try:
            self._save_checkpoint()
        except UnimaskError as error:
            self.reporter.message(f"the steps after step {self.saved} are lost: {error}")
        else:
            self.reporter.message(
                f"an error ends the run after step {self.step}, which has a checkpoint; when it is mended, "
                f"resume the run in {self.folder.path} to go on"
            )

    def _restore(self, state: dict[str, Any]) -> None:
        if "optimizer" in state:
            check_optimizer(self.folder.taken, self.learner.optimizer.optimizer, state["optimizer"])
        self.learner.restore(state, self.folder.shards(int(state["step"])))
        self.step, self.skipped = int(state["step"]), int(state["skipped"])
        self.skipped_in_row, self.seconds_before = int(state["skipped_in_row"]), float(state["seconds"])
        self.window = Window.from_state(state["window"])

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
        if self.record is not None:
            self.record.finish()
        none: dict[str, Value] = {}
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

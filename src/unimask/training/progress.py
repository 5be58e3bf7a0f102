"""What a training shows while it runs: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimiser step."""

    step: int  # steps done
    steps: int  # of so many
    loss: float  # weighted total, mean over the steps since the last line of the log
    terms: Mapping[str, float]  # of the final prediction, not weighted, mean over the same steps
    learning_rate: float
    speed: float  # in training, without evaluations
    unit: str  # of so many a second: pictures, tokens
    seconds_left: float
    logged: bool  # this step has a line in the log


@runtime_checkable
class Reporter(Protocol):
    """Is told what happens; only in the first of several processes."""

    def start(self, *, steps: int, done: int) -> None:
        """The training begins, or goes on after `done` of `steps` steps."""

    def step(self, report: StepReport) -> None:
        """A step is done."""

    def evaluating(self, done: int, total: int) -> None:
        """`done` of `total` pictures (or lines) of an evaluation are done."""

    def message(self, text: str) -> None:
        """Something that a reader of the log should see."""

    def stop(self) -> None:
        """The training is over, in whichever way."""


def duration(seconds: int | float) -> str:
    """Hours, minutes and seconds: `1:02:03`."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def describe(report: StepReport) -> str:
    """A step in one line."""
    terms = ", ".join(f"{name} {value:.3f}" for name, value in report.terms.items())
    return (
        f"step {report.step}/{report.steps}  loss {report.loss:.3f} ({terms})  "
        f"learning rate {report.learning_rate:.2e}  {report.speed:.2f} {report.unit}/s  "
        f"{duration(report.seconds_left)} left"
    )


class SilentReporter:
    """Shows nothing."""

    def start(self, *, steps: int, done: int) -> None:
        """Shows nothing."""

    def step(self, report: StepReport) -> None:
        """Shows nothing."""

    def evaluating(self, done: int, total: int) -> None:
        """Shows nothing."""

    def message(self, text: str) -> None:
        """Shows nothing."""

    def stop(self) -> None:
        """Shows nothing."""


def _write_to_standard_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class PlainReporter:
    """One line per logged step, for files and pipes; on standard error, or given to `write`."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._write = write or _write_to_standard_error

    def start(self, *, steps: int, done: int) -> None:
        """Says where the training begins."""
        self.message(f"training for {steps} steps" if done == 0 else f"going on after step {done} of {steps}")

    def step(self, report: StepReport) -> None:
        """A line where the log has one too."""
        if report.logged:
            self.message(describe(report))

    def evaluating(self, done: int, total: int) -> None:
        """Shows nothing: the result is one line."""

    def message(self, text: str) -> None:
        """A line of its own."""
        self._write(text)

    def stop(self) -> None:
        """Shows nothing."""


class RichReporter:
    """A bar with loss, speed and time left, and a second one while an evaluation runs."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[details]}"),
            console=console or Console(stderr=True),
        )
        self._training = TaskID(0)
        self._evaluation: TaskID | None = None

    def start(self, *, steps: int, done: int) -> None:
        """Shows the bar."""
        self._training = self._progress.add_task("training", total=steps, completed=done, details="")
        self._progress.start()

    def step(self, report: StepReport) -> None:
        """Moves the bar."""
        details = (
            f"loss {report.loss:.2f}  {report.speed:.2f} {report.unit}/s  "
            f"{duration(report.seconds_left)} left"
        )
        self._progress.update(self._training, completed=report.step, details=details)

    def evaluating(self, done: int, total: int) -> None:
        """Moves the second bar, which is there until the evaluation is done."""
        if self._evaluation is None:
            self._evaluation = self._progress.add_task("evaluating", total=total, details="")
        self._progress.update(self._evaluation, completed=done)
        if done >= total:
            self._progress.remove_task(self._evaluation)
            self._evaluation = None

    def message(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Leaves the bar as it is."""
        self._progress.stop()


def automatic_reporter() -> Reporter:
    """A bar where standard error is a terminal, lines elsewhere."""
    return RichReporter() if sys.stderr.isatty() else PlainReporter()

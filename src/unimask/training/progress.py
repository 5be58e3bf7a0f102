"""Progress of a training: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

LONG = 6 * 3600  # seconds; longer trainings get a warning


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimiser step."""

    step: int  # steps done
    steps: int  # of so many
    loss: float  # weighted total, mean over the steps since the last line of the log
    terms: Mapping[str, float]  # of the final prediction, not weighted, mean over the same steps
    learning_rate: float
    speed: float  # in training, without evaluations
    unit: str  # of speed, per second: images, tokens
    seconds_left: float
    logged: bool  # this step has a line in the log


@runtime_checkable
class Reporter(Protocol):
    """Receives the reports of a training, in the first of several processes only."""

    def start(self, *, steps: int, done: int) -> None:
        """Report that the training begins, or goes on after `done` of `steps` steps."""

    def step(self, report: StepReport) -> None:
        """Report a step that is done."""

    def evaluating(self, done: int, total: int) -> None:
        """Report that `done` of `total` images (or lines) of an evaluation are done."""

    def message(self, text: str) -> None:
        """Report something that a reader of the log should know."""

    def stop(self) -> None:
        """Report that the training is over, completed or not."""


def duration(seconds: int | float) -> str:
    """Return hours, minutes and seconds: `1:02:03`."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def describe(report: StepReport) -> str:
    """Describe a step in one line."""
    terms = ", ".join(f"{name} {value:.3f}" for name, value in report.terms.items())
    return (
        f"step {report.step}/{report.steps}  loss {report.loss:.3f} ({terms})  "
        f"learning rate {report.learning_rate:.2e}  {report.speed:.2f} {report.unit}/s  "
        f"{duration(report.seconds_left)} left"
    )


def estimate(report: StepReport) -> str:
    """Return a sentence after the first step about the time of the others; the first one is slower."""
    more, left = report.steps - report.step, duration(report.seconds_left)
    shorter = "; `--set training.steps=NUMBER` makes it shorter" if report.seconds_left > LONG else ""
    return f"the first step is done; the {more} to come take {left} or less, evaluations not counted{shorter}"


class SilentReporter:
    """Show nothing."""

    def start(self, *, steps: int, done: int) -> None:
        """Show nothing."""

    def step(self, report: StepReport) -> None:
        """Show nothing."""

    def evaluating(self, done: int, total: int) -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""


def _write_to_standard_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class PlainReporter:
    """Show one line per logged step, for files and pipes: on standard error, or given to `write`."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._write = write or _write_to_standard_error
        self._first = True

    def start(self, *, steps: int, done: int) -> None:
        """Show where the training begins."""
        self._first = True
        self.message(
            f"training for {steps} step{'s' * (steps != 1)}"
            if done == 0
            else f"going on after step {done} of {steps}"
        )

    def step(self, report: StepReport) -> None:
        """Show a line of the first step, with an estimate, and where the log has one too."""
        if self._first and report.step < report.steps:
            self.message(estimate(report))
        if self._first or report.logged:
            self.message(describe(report))
        self._first = False

    def evaluating(self, done: int, total: int) -> None:
        """Show nothing: the result is one line."""

    def message(self, text: str) -> None:
        """Show a line."""
        self._write(text)

    def stop(self) -> None:
        """Show nothing."""


def progress_bars(console: Console, *first: ProgressColumn) -> Progress:
    """Return bars of a label, the share that is done, counts, and the text of the field `details`.

    On a narrow terminal the bar is short, and the end of the details is cut.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(max(6, min(40, console.width - 60))),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        _Details(),
    )
    return Progress(*first, *columns, console=console)


class _Details(ProgressColumn):
    """The field `details`, in one line."""

    def render(self, task: Task) -> Text:
        """Return as much of the text as there is room for."""
        return Text(task.fields["details"], no_wrap=True, overflow="ellipsis")


class RichReporter:
    """Show a bar with loss, speed and time left, and a second one while an evaluation runs."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = progress_bars(console or Console(stderr=True), SpinnerColumn())
        self._training = TaskID(0)
        self._evaluation: TaskID | None = None
        self._first = True

    def start(self, *, steps: int, done: int) -> None:
        """Show the bar."""
        self._training = self._progress.add_task("training", total=steps, completed=done, details="")
        self._progress.start()
        self._first = True

    def step(self, report: StepReport) -> None:
        """Move the bar."""
        details = (
            f"{duration(report.seconds_left)} left  loss {report.loss:.2f}  "
            f"{report.speed:.2f} {report.unit}/s"
        )
        self._progress.update(self._training, completed=report.step, details=details)
        if self._first and report.step < report.steps:
            self.message(estimate(report))
        self._first = False

    def evaluating(self, done: int, total: int) -> None:
        """Move the second bar, which stays until the evaluation is done."""
        if self._evaluation is None:
            self._evaluation = self._progress.add_task("evaluating", total=total, details="")
        self._progress.update(self._evaluation, completed=done)
        if done >= total:
            self._progress.remove_task(self._evaluation)
            self._evaluation = None

    def message(self, text: str) -> None:
        """Show a line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()


def automatic_reporter() -> Reporter:
    """Return a bar where standard error is a terminal, lines elsewhere."""
    return RichReporter() if sys.stderr.isatty() else PlainReporter()

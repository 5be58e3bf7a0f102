"""The result of a training, and the error that stops it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unimask.errors import UnimaskError


class TrainingError(UnimaskError):
    """A training cannot go on: its losses are not finite any more."""


class LostProcessError(TrainingError):
    """Another process of the training has ended; the same command with --resume goes on."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a training ended. Metrics are empty where there was no evaluation."""

    output: Path  # the run folder
    steps: int  # optimiser steps done, over all resumed parts of the run
    completed: bool  # False: asked to stop (SIGINT or SIGTERM); a checkpoint was written, resume goes on
    final: Mapping[str, float | None]  # the last evaluation; None is a metric without ground truth
    best: Mapping[str, float | None]  # that with the best primary metric, whose model is in `best/`
    best_step: int  # 0 where there was no evaluation, or none could measure the primary metric
    skipped_steps: int  # steps skipped because something was not finite
    seconds: float  # time spent, over all resumed parts of the run
    first_process: bool  # whether this is the first of several processes, the only one that should print

"""Small trainings for the tests; run as a script, it trains in a process of its own (and in those it starts).

python small_runs.py '{"output": "run", "changes": {"training.steps": 8}, "devices": 2, "most": 6,
    "broken": [1], "resume": false}' [another one ...]
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from unimask.config.images import Experiment
from unimask.config.overrides import override
from unimask.config.tasks import Task
from unimask.data.formats.shapes import shapes_dataset
from unimask.data.reading import PLAIN
from unimask.losses.build import build_criterion
from unimask.presets.own_data import tiny
from unimask.structures import Losses
from unimask.training import image_job as masks
from unimask.training import run as training_run
from unimask.training import sharding
from unimask.training.image_data import TrainingTask
from unimask.training.loggers import Logger
from unimask.training.progress import Reporter, SilentReporter
from unimask.training.result import TrainingResult
from unimask.training.run import train

SETTINGS: dict[str, object] = {
    "training.evaluate_every": 0,
    "training.checkpoint_every": 3,
    "training.log_every": 2,
    "training.warmup_steps": 0,
}
SMOOTH: dict[str, object] = {
    "losses.sampling": "dense",
    "model.backbone.freeze_norm": True,
    "data.jitter.low": 1.0,
    "data.jitter.high": 1.0,
}
"""No random points, no statistics of the batch, and with `most=0` two segments in every picture: so the loss
of a batch is the mean over its parts. (The class term is weighted by how many queries have a target.)"""


def small_experiment(**changes: object) -> Experiment:
    """The `tiny` preset with the settings of the tests; dots in names are written as `__`."""
    return override(tiny(), SETTINGS | {name.replace("__", "."): value for name, value in changes.items()})


def small_task(task: Task = "panoptic", count: int = 7, most: int = 6) -> TrainingTask:
    """A few generated pictures to train and to validate on, with up to so many things."""
    return TrainingTask(
        task=task,
        data="shapes",
        training=shapes_dataset(size=(64, 64), count=count, seed=0, most=most),
        validation=shapes_dataset(size=(53, 67), count=3, seed=1),
        reading=PLAIN,
    )


@contextmanager
def small_data(count: int = 7, most: int = 6) -> Iterator[None]:
    """`train` uses `small_task` here, whatever data it is given."""
    with mock.patch.object(
        training_run, "open_task", lambda data, task, *rest: small_task(task, count, most)
    ):
        yield


@contextmanager
def broken_losses(calls: set[int], rank: int = 0) -> Iterator[None]:
    """The mask term is not a number in some calls of the criterion (counted from 0) in one process."""
    done = 0

    class Broken(torch.nn.Module):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__()
            self.criterion = build_criterion(*arguments, **options)

        def forward(self, *arguments: object) -> Losses:
            nonlocal done
            done += 1
            losses = self.criterion(*arguments)
            mine = not torch.distributed.is_initialized() or torch.distributed.get_rank() == rank
            if done - 1 not in calls or not mine:
                return losses
            terms: dict[str, Tensor] = {**losses.terms, "mask": losses.terms["mask"] * float("nan")}
            return Losses(terms=terms, weights=losses.weights)

    with mock.patch.object(masks, "build_criterion", Broken):
        yield


def run(
    output: Path,
    *,
    count: int = 7,
    most: int = 6,
    reporter: Reporter | None = None,
    resume: bool = False,
    loggers: Sequence[str | Logger] = (),
    **changes: object,
) -> TrainingResult:
    """A training in this process, on the CPU."""
    with small_data(count, most):
        return train(
            small_experiment(**changes),
            "shapes",
            output,
            resume=resume,
            device="cpu",
            reporter=reporter or SilentReporter(),
            loggers=loggers,
        )


def main(*requests: str) -> None:
    """See the top of the file."""
    torch.set_num_threads(1)
    for request in requests:
        settings = json.loads(request)
        experiment = override(tiny(), SETTINGS | settings["changes"])
        small_layers = mock.patch.object(sharding, "SMALLEST", 1000)  # or nothing would be split on its own
        broken = broken_losses(set(settings["broken"]), rank=1)
        with small_layers, small_data(most=settings["most"]), broken:
            train(
                experiment,
                "shapes",
                settings["output"],
                device="cpu",
                devices=settings["devices"],
                resume=settings["resume"],
                reporter=SilentReporter(),
            )


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What the training loop needs of a model and its data; one loop serves every kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

from unimask.config.training import TrainingConfig
from unimask.losses.criterion import Average
from unimask.training.run_folder import RunFolder

BatchType = TypeVar("BatchType")
Same = TypeVar("Same")


@runtime_checkable
class Measure(Protocol):
    """Calls the model on one batch and computes the losses."""

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """Return `total`, which is differentiated, and others for the log."""

    def problem(self) -> str:
        """Return which losses were not finite, and for which images."""


@runtime_checkable
class Measured(Protocol):
    """The result of an evaluation."""

    @property
    def values(self) -> Mapping[str, float | None]:
        """Return flat names and their values; None where there was nothing to measure."""

    @property
    def per_category(self) -> Mapping[str, Mapping[str, float]]:
        """Return names and their values for each category, if there are categories."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What an evaluation shows, by name."""

    images: Mapping[str, Image.Image]  # `validation`: the same few images each time
    tables: Mapping[str, Mapping[str, object]]  # ready for JSON


@runtime_checkable
class Share(Protocol):
    """One process's share of an evaluation: a state that can be merged."""

    def merge(self: Same, other: Same) -> None:
        """Add the share of another process."""

    def compute(self) -> Measured:
        """Return the values over everything so far."""


@runtime_checkable
class Stream(Protocol[BatchType]):
    """Endless batches."""

    def __next__(self) -> BatchType: ...

    def __iter__(self) -> "Stream[BatchType]": ...

    def close(self) -> None:
        """End the processes that make the batches."""


@runtime_checkable
class Job(Protocol, Generic[BatchType]):
    """A model, its data, its losses and its metrics."""

    @property
    def training(self) -> TrainingConfig:
        """Return the settings of the loop."""

    @property
    def unit(self) -> str:
        """Return the unit of speed, as the log names it: images, tokens."""

    @property
    def primary_metric(self) -> str:
        """Return the metric whose largest value makes the best model."""

    @property
    def source(self) -> str:
        """Describe the data in a few words, for the provenance of the weights."""

    def describe(self) -> dict[str, object]:
        """Return what identifies the run, ready for JSON."""

    def begin(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        """Check the data before the first step, report warnings, and write the files that a run needs.

        Raises:
            DataError: the data cannot be used for a training.
        """

    def build(self) -> nn.Module:
        """Build the model with random weights."""

    def initialise(self, model: nn.Module, say: Callable[[str], object]) -> str:
        """Fill the model with its initial weights and return which they are; only where a run begins.

        `say` is called with sentences about them.
        """

    def stream(self, *, start_step: int, rank: int, world: int, pin_memory: bool) -> Stream[BatchType]:
        """Return the batches of this process, one per pass, from pass `start_step` on."""

    def items(self, batches: Sequence[BatchType]) -> int:
        """Return how many units (see `unit`) are in some batches."""

    def targets(self, batches: Sequence[BatchType]) -> int:
        """Return how many targets the losses of some batches are means over."""

    def criterion(self, device: torch.device, average: Average) -> Callable[[BatchType, int, int], Measure]:
        """Return the function that computes the losses of a batch.

        It takes the batch, the step, counted from 0, and a seed for its random numbers. `average` gives
        the mean number of targets per pass over all passes and processes of a step.
        """

    def evaluate(
        self, model: nn.Module, progress: Callable[[int, int], None], *, rank: int, world: int
    ) -> Share:
        """Evaluate this process's share of the data; the model is in eval mode."""

    def draw(self, share: Any, step: int) -> Drawing:
        """Return what the evaluation after a step shows: of all shares, merged."""

    def headline(self, values: Mapping[str, float | None]) -> str:
        """Return the most important metrics in one line."""

    def save(self, folder: Path, model: nn.Module, provenance: str) -> None:
        """Write a model folder."""


AnyJob = Job[Any]
"""The loop passes batches from one part of a job to another, whatever they are."""

"""What the training loop needs to know of a model and its data; one loop serves every kind."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from unimask.config.images import TrainingConfig
from unimask.losses.criterion import Average

BatchType = TypeVar("BatchType")
Same = TypeVar("Same")


@runtime_checkable
class Measure(Protocol):
    """Calls the model on one batch and measures the losses."""

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """`total`, the number to differentiate, and others to look at."""

    def problem(self) -> str:
        """What was not finite, and where."""


@runtime_checkable
class Measured(Protocol):
    """What an evaluation has measured."""

    @property
    def values(self) -> Mapping[str, float]:
        """Flat names and their values."""


@runtime_checkable
class Share(Protocol):
    """What one process has counted in an evaluation: a state that adds."""

    def merge(self: Same, other: Same) -> None:
        """Adds what another process has counted."""

    def compute(self) -> Measured:
        """The values over everything so far."""


@runtime_checkable
class Stream(Protocol[BatchType]):
    """Endless batches."""

    def __next__(self) -> BatchType: ...

    def __iter__(self) -> "Stream[BatchType]": ...

    def close(self) -> None:
        """Ends what makes them."""


@runtime_checkable
class Job(Protocol, Generic[BatchType]):
    """A model, the data it learns from, its losses, and how good it is."""

    @property
    def training(self) -> TrainingConfig:
        """The settings of the loop."""

    @property
    def unit(self) -> str:
        """What speed is counted in: pictures, tokens."""

    @property
    def primary_metric(self) -> str:
        """The metric whose largest value makes the best model."""

    @property
    def source(self) -> str:
        """What is learned from, in a few words, for the provenance of the weights."""

    def describe(self) -> dict[str, object]:
        """What names the run, ready for JSON."""

    def keep(self, folder: Path) -> None:
        """Writes into the folder of the run what a resumed run must find there, if anything."""

    def build(self) -> nn.Module:
        """The model with random weights."""

    def initialise(self, model: nn.Module) -> str:
        """Fills the model with the weights it starts from, and says which; only where a run begins."""

    def stream(self, *, start_step: int, rank: int, world: int, pin_memory: bool) -> Stream[BatchType]:
        """The batches of this process, one per pass, after so many passes."""

    def items(self, batches: Sequence[BatchType]) -> int:
        """How many of its units are in some batches."""

    def targets(self, batches: Sequence[BatchType]) -> int:
        """How many targets the losses of some batches are means over."""

    def criterion(self, device: torch.device, average: Average) -> Callable[[BatchType, int, int], Measure]:
        """What measures a batch, given the step, counted from 0, and a seed for its random numbers.

        `average` gives the mean number of targets per pass over all passes and processes of a step.
        """

    def evaluate(
        self, model: nn.Module, progress: Callable[[int, int], None], *, rank: int, world: int
    ) -> Share:
        """This process's share of an evaluation. The model is in eval mode meanwhile."""

    def headline(self, values: Mapping[str, float]) -> str:
        """The most important of all metrics, in one line."""

    def save(self, folder: Path, model: nn.Module, provenance: str) -> None:
        """Writes a model folder."""


AnyJob = Job[Any]
"""The loop hands batches from one part of a job to another, and never looks into them."""

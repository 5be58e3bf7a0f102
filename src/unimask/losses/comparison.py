"""Interfaces through which a criterion compares masks or boxes with the targets."""

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

from unimask.structures import Matches, Uniform


@runtime_checkable
class PairTerm(Protocol):
    """A term that compares the prediction of a query with a target, each given as a vector of numbers.

    The numbers are mask logits and labels at points, or box coordinates. Losses are over matched pairs only.
    """

    @property
    def name(self) -> str:
        """The key of the term in `Losses`."""

    @property
    def weight(self) -> float:
        """The weight of both the cost and the loss."""

    def cost(
        self, predicted: Float[Tensor, "queries numbers"], targets: Float[Tensor, "targets numbers"], /
    ) -> Float[Tensor, "queries targets"]:
        """Return the unweighted cost of each query-target pair."""

    def loss(
        self,
        predicted: Float[Tensor, "pairs numbers"],
        targets: Float[Tensor, "pairs numbers"],
        count: Float[Tensor, ""],
        /,
    ) -> Float[Tensor, ""]:
        """Return the unweighted loss: the sum over the pairs, divided by `count`."""


@runtime_checkable
class Target(Protocol):
    """The targets of one image."""

    @property
    def labels(self) -> Int64[Tensor, " targets"]:
        """The category of each target."""

    def __len__(self) -> int: ...


@runtime_checkable
class HasClassLogits(Protocol):
    """The output of a model for a batch; the first dimension of the logits is the prediction, by depth."""

    @property
    def class_logits(self) -> Float[Tensor, "predictions batch queries classes_and_none"]:
        """The class logits of each query; the last class is no-object."""


@runtime_checkable
class Compared(Protocol):
    """All predictions for a batch with its targets, without the class; `index` selects a prediction."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the prediction that the losses use."""

    def of(self, tensors: tuple[Tensor, ...]) -> "Compared":
        """Return this comparison with other tensors in place of `tensors`."""

    def costs(self, index: int) -> list[Float[Tensor, "queries _targets"]]:
        """Return the weighted sum of all terms' costs, one matrix per image; may draw random points."""

    def losses(self, index: int, matches: Matches, count: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """Return each term's unweighted loss over the matched pairs of a prediction, divided by `count`."""


PredictionOfModel = TypeVar("PredictionOfModel", bound=HasClassLogits, contravariant=True)
TargetOfModel = TypeVar("TargetOfModel", bound=Target, contravariant=True)


@runtime_checkable
class Comparison(Protocol[PredictionOfModel, TargetOfModel]):
    """Combines a prediction with its targets, so that costs and losses can be computed."""

    @property
    def terms(self) -> Sequence[PairTerm]:
        """The terms that are computed for each pair."""

    def __call__(
        self, prediction: PredictionOfModel, targets: tuple[TargetOfModel, ...], uniform: Uniform
    ) -> Compared:
        """Return the comparison, which computes in float32."""


def weighted_cost(
    terms: Sequence[PairTerm],
    predicted: Float[Tensor, "queries numbers"],
    targets: Float[Tensor, "targets numbers"],
) -> Float[Tensor, "queries targets"]:
    """Return the weighted sum of all terms' costs for each query-target pair."""
    cost = predicted.new_zeros((len(predicted), len(targets)))
    for term in terms:
        cost = cost + term.weight * term.cost(predicted, targets)
    return cost

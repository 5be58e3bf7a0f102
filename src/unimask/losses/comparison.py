"""The interfaces through which a criterion compares masks or boxes with the targets."""

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

from unimask.structures import Matches, Uniform


@runtime_checkable
class PairTerm(Protocol):
    """A term that compares the prediction of a query with a target, each as numbers; on matched pairs only.

    The numbers are logits and labels at points, or the coordinates of boxes.
    """

    @property
    def name(self) -> str:
        """The key of the term in `Losses`."""

    @property
    def weight(self) -> float:
        """The weight of the cost and of the loss."""

    def cost(
        self, predicted: Float[Tensor, "queries numbers"], targets: Float[Tensor, "targets numbers"], /
    ) -> Float[Tensor, "queries targets"]:
        """Return the cost of each query for each target, not weighted."""

    def loss(
        self,
        predicted: Float[Tensor, "pairs numbers"],
        targets: Float[Tensor, "pairs numbers"],
        count: Float[Tensor, ""],
        /,
    ) -> Float[Tensor, ""]:
        """Return the sum over the pairs, divided by `count`; not weighted."""


@runtime_checkable
class Target(Protocol):
    """The targets of one image."""

    @property
    def labels(self) -> Int64[Tensor, " targets"]:
        """Their categories."""

    def __len__(self) -> int: ...


@runtime_checkable
class HasClassLogits(Protocol):
    """The output of a model for a batch; the first dimension of the logits runs over predictions."""

    @property
    def class_logits(self) -> Float[Tensor, "predictions batch queries classes_and_none"]:
        """Of each query; the last class is no-object."""


@runtime_checkable
class Compared(Protocol):
    """All predictions for a batch with its targets, without the class. `index` numbers the predictions."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the prediction that the losses use."""

    def of(self, tensors: tuple[Tensor, ...]) -> "Compared":
        """Return the same comparison of other tensors in place of `tensors`."""

    def costs(self, index: int) -> list[Float[Tensor, "queries _targets"]]:
        """Return the weighted sum of the terms' costs, of each image; random points are drawn for it."""

    def losses(self, index: int, matches: Matches, count: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """Each term's loss over the matched pairs of a prediction, divided by `count`, not weighted."""


PredictionOfModel = TypeVar("PredictionOfModel", bound=HasClassLogits, contravariant=True)
TargetOfModel = TypeVar("TargetOfModel", bound=Target, contravariant=True)


@runtime_checkable
class Comparison(Protocol[PredictionOfModel, TargetOfModel]):
    """Prepares the comparison of a prediction with targets of its kind."""

    @property
    def terms(self) -> Sequence[PairTerm]:
        """What is compared."""

    def __call__(
        self, prediction: PredictionOfModel, targets: tuple[TargetOfModel, ...], uniform: Uniform
    ) -> Compared:
        """Return the comparison, which computes in float32."""


def weighted_cost(
    terms: Sequence[PairTerm],
    predicted: Float[Tensor, "queries numbers"],
    targets: Float[Tensor, "targets numbers"],
) -> Float[Tensor, "queries targets"]:
    """Return the weighted sum of the costs of all terms."""
    cost = predicted.new_zeros((len(predicted), len(targets)))
    for term in terms:
        cost = cost + term.weight * term.cost(predicted, targets)
    return cost

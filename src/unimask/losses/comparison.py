"""What a criterion asks of the part that compares masks, or boxes, with the targets."""

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

from unimask.structures import Matches, Uniform


@runtime_checkable
class PairTerm(Protocol):
    """A term that compares what a query says with a target, each given as numbers; on matched pairs only.

    The numbers are logits and labels at points, or the coordinates of boxes.
    """

    @property
    def name(self) -> str:
        """The key of the term in `Losses`."""

    @property
    def weight(self) -> float:
        """The weight of the cost and of the loss."""

    def cost(
        self, said: Float[Tensor, "queries numbers"], targets: Float[Tensor, "targets numbers"], /
    ) -> Float[Tensor, "queries targets"]:
        """What each query pays for each target, not weighted."""

    def loss(
        self,
        said: Float[Tensor, "pairs numbers"],
        targets: Float[Tensor, "pairs numbers"],
        count: Float[Tensor, ""],
        /,
    ) -> Float[Tensor, ""]:
        """The sum over the pairs, divided by `count`; not weighted."""


@runtime_checkable
class Target(Protocol):
    """What is to be found in one image."""

    @property
    def labels(self) -> Int64[Tensor, " targets"]:
        """Their categories."""

    def __len__(self) -> int: ...


@runtime_checkable
class Said(Protocol):
    """What a model says about a batch; the first dimension of the logits runs over predictions."""

    @property
    def class_logits(self) -> Float[Tensor, "predictions batch queries classes_and_none"]:
        """Of each query; the last class is no-object."""


@runtime_checkable
class Compared(Protocol):
    """All predictions about a batch beside its targets, class apart. `index` numbers the predictions."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the model said, as the losses use it."""

    def of(self, tensors: tuple[Tensor, ...]) -> "Compared":
        """The same comparison of other tensors in place of `tensors`."""

    def costs(self, index: int) -> list[Float[Tensor, "queries _targets"]]:
        """The weighted sum of the terms' costs, of each image; random points are drawn for it."""

    def losses(self, index: int, matches: Matches, count: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """Each term's loss over the matched pairs of a prediction, divided by `count`, not weighted."""


SaidByModel = TypeVar("SaidByModel", bound=Said, contravariant=True)
TargetOfModel = TypeVar("TargetOfModel", bound=Target, contravariant=True)


@runtime_checkable
class Comparison(Protocol[SaidByModel, TargetOfModel]):
    """Puts a prediction beside targets of its kind."""

    @property
    def terms(self) -> Sequence[PairTerm]:
        """What is compared."""

    def __call__(
        self, prediction: SaidByModel, targets: tuple[TargetOfModel, ...], uniform: Uniform
    ) -> Compared:
        """Computed in float32 from here on."""


def weighted_cost(
    terms: Sequence[PairTerm],
    said: Float[Tensor, "queries numbers"],
    targets: Float[Tensor, "targets numbers"],
) -> Float[Tensor, "queries targets"]:
    """The weighted sum of the costs of all terms."""
    cost = said.new_zeros((len(said), len(targets)))
    for term in terms:
        cost = cost + term.weight * term.cost(said, targets)
    return cost

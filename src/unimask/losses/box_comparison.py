"""Compares boxes with the boxes of the targets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from unimask.losses.comparison import PairTerm, weighted_cost
from unimask.structures import BoxPrediction, BoxTargets, Matches, Uniform


@dataclass(frozen=True, kw_only=True)
class BoxComparison:
    """Compares cxcywh boxes; nothing is random.

    Source: DETR (2005.12872), Sec. 3.1.
    """

    terms: Sequence[PairTerm]

    def __call__(
        self, prediction: BoxPrediction, targets: tuple[BoxTargets, ...], uniform: Uniform
    ) -> "ComparedBoxes":
        """Return the comparison of all predicted boxes with those of the targets."""
        return ComparedBoxes(
            terms=self.terms,
            boxes=prediction.boxes.float(),
            targets=tuple(target.boxes.float() for target in targets),
        )


@dataclass(frozen=True, kw_only=True)
class ComparedBoxes:
    """The boxes of one batch."""

    terms: Sequence[PairTerm]
    boxes: Float[Tensor, "predictions batch queries 4"]
    targets: tuple[Float[Tensor, "_targets 4"], ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The boxes."""
        return (self.boxes,)

    def of(self, tensors: tuple[Tensor, ...]) -> "ComparedBoxes":
        """Return the same comparison of other boxes."""
        return replace(self, boxes=tensors[0])

    @torch.no_grad()
    def costs(self, index: int) -> list[Float[Tensor, "queries _targets"]]:
        """Return the weighted cost of every query for every target, of each image."""
        boxes, counts = self.boxes[index], [len(target) for target in self.targets]
        # all images at once: most of these costs are of no use, but one large step beats many
        cost = weighted_cost(self.terms, boxes.flatten(0, 1), torch.cat(self.targets))
        parts = cost.unflatten(0, boxes.shape[:2]).split(counts, dim=2)
        return [part[image] for image, part in enumerate(parts)]

    def losses(self, index: int, matches: Matches, count: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """Each term over the matched pairs; 0, with a gradient of 0, where there is none."""
        predicted = self.boxes[index][matches.image, matches.query]
        first = torch.tensor([0, *(len(target) for target in self.targets)], device=predicted.device).cumsum(
            0
        )
        targets = torch.cat(self.targets)[first[matches.image] + matches.target]
        return {term.name: term.loss(predicted, targets, count) for term in self.terms}

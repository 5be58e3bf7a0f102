"""Comparison of predicted boxes with the boxes of the targets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from unimask.losses.comparison import PairTerm, weighted_cost
from unimask.structures import BoxPrediction, BoxTargets, Matches, Uniform


@dataclass(frozen=True, kw_only=True)
class BoxComparison:
    """Compares predicted boxes with target boxes, both cxcywh in [0, 1]; draws no random numbers.

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
    """The predicted boxes and the target boxes of one batch, cxcywh in [0, 1]."""

    terms: Sequence[PairTerm]
    boxes: Float[Tensor, "predictions batch queries 4"]
    targets: tuple[Float[Tensor, "_targets 4"], ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The predicted boxes."""
        return (self.boxes,)

    def of(self, tensors: tuple[Tensor, ...]) -> "ComparedBoxes":
        """Return this comparison with other predicted boxes."""
        return replace(self, boxes=tensors[0])

    @torch.no_grad()
    def costs(self, index: int) -> list[Float[Tensor, "queries _targets"]]:
        """Return the weighted cost of every query-target pair, one matrix per image."""
        boxes, counts = self.boxes[index], [len(target) for target in self.targets]
        # all images at once: costs between images are discarded, but one large step is faster than many
        cost = weighted_cost(self.terms, boxes.flatten(0, 1), torch.cat(self.targets))
        parts = cost.unflatten(0, boxes.shape[:2]).split(counts, dim=2)
        return [part[image] for image, part in enumerate(parts)]

    def losses(self, index: int, matches: Matches, count: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """Return each term's loss over the matched pairs; 0, with a gradient of 0, if there are none."""
        predicted = self.boxes[index][matches.image, matches.query]
        first = torch.tensor([0, *(len(target) for target in self.targets)], device=predicted.device).cumsum(
            0
        )
        targets = torch.cat(self.targets)[first[matches.image] + matches.target]
        return {term.name: term.loss(predicted, targets, count) for term in self.terms}

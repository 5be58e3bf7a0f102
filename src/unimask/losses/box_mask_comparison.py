"""Comparison of boxes and masks with the targets, for a detection model with a mask head."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from unimask.losses.box_comparison import BoxComparison, ComparedBoxes
from unimask.losses.comparison import PairTerm
from unimask.losses.mask_comparison import ComparedMasks, MaskComparison
from unimask.structures import BoxMaskPrediction, BoxMaskTargets, BoxTargets, Matches, Uniform


@dataclass(frozen=True, kw_only=True)
class BoxMaskComparison:
    """Compares the boxes of every decoder layer and the masks of the last; only boxes are used for matching.

    Source: DETR (2005.12872), Sec. 4.2; which layers have masks, and what the matching uses, is only in its
    code.
    """

    boxes: BoxComparison
    masks: MaskComparison

    @property
    def terms(self) -> Sequence[PairTerm]:
        """The terms of boxes, then the terms of masks."""
        return (*self.boxes.terms, *self.masks.terms)

    def __call__(
        self, prediction: BoxMaskPrediction, targets: tuple[BoxMaskTargets, ...], uniform: Uniform
    ) -> "ComparedBoxMasks":
        """Return the comparison with the targets; their segments are on the canvas."""
        boxes = tuple(BoxTargets(boxes=target.boxes, labels=target.labels) for target in targets)
        segments = tuple(target.segments for target in targets)
        return ComparedBoxMasks(
            boxes=self.boxes(prediction.of_boxes(), boxes, uniform),
            masks=self.masks(prediction.of_masks(), segments, uniform),
            last=len(prediction.boxes) - 1,
        )


@dataclass(frozen=True, kw_only=True)
class ComparedBoxMasks:
    """The boxes and masks of one batch; `last` is the index of the prediction that has masks."""

    boxes: ComparedBoxes
    masks: ComparedMasks
    last: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The predicted boxes, then the tensors of the predicted masks."""
        return *self.boxes.tensors, *self.masks.tensors

    def of(self, tensors: tuple[Tensor, ...]) -> "ComparedBoxMasks":
        """Return this comparison with other tensors in place of `tensors`."""
        count = len(self.boxes.tensors)
        return replace(self, boxes=self.boxes.of(tensors[:count]), masks=self.masks.of(tensors[count:]))

    def costs(self, index: int) -> list[Float[Tensor, "queries _targets"]]:
        """Return the weighted costs of the boxes; masks contribute nothing."""
        return self.boxes.costs(index)

    def losses(self, index: int, matches: Matches, count: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """Return each term's loss over the matched pairs; mask terms are 0 except for the last prediction."""
        if index == self.last:
            of_masks = self.masks.losses(0, matches, count)
        else:
            of_masks = {term.name: count.new_zeros(()) for term in self.masks.terms}
        return self.boxes.losses(index, matches, count) | of_masks

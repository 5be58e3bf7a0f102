"""Compares boxes and masks with those of the targets: for a detection model with a mask head."""

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
    """Compares boxes after every layer and the masks of the final queries; masks play no part in matching.

    Source: DETR (2005.12872), Sec. 4.2; which layers and costs is only in its code.
    """

    boxes: BoxComparison
    masks: MaskComparison

    @property
    def terms(self) -> Sequence[PairTerm]:
        """Those of boxes, then those of masks."""
        return (*self.boxes.terms, *self.masks.terms)

    def __call__(
        self, prediction: BoxMaskPrediction, targets: tuple[BoxMaskTargets, ...], uniform: Uniform
    ) -> "ComparedBoxMasks":
        """Return the comparison with the targets, whose segments lie on the canvas."""
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
        """The boxes, then what the masks are made of."""
        return *self.boxes.tensors, *self.masks.tensors

    def of(self, tensors: tuple[Tensor, ...]) -> "ComparedBoxMasks":
        """Return the same comparison of other tensors in place of `tensors`."""
        count = len(self.boxes.tensors)
        return replace(self, boxes=self.boxes.of(tensors[:count]), masks=self.masks.of(tensors[count:]))

    def costs(self, index: int) -> list[Float[Tensor, "queries _targets"]]:
        """Return the weighted cost of the boxes alone."""
        return self.boxes.costs(index)

    def losses(self, index: int, matches: Matches, count: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """Each term over the matched pairs; those of masks are 0 but for the last prediction."""
        if index == self.last:
            of_masks = self.masks.losses(0, matches, count)
        else:
            of_masks = {term.name: count.new_zeros(()) for term in self.masks.terms}
        return self.boxes.losses(index, matches, count) | of_masks

"""The terms of the loss; each has a cost of every query-target pair, and a loss of the matched pairs.

Costs decide the matching, losses train the matched pairs; both compare the same quantities and have the same
weights.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from unimask.ops.boxes import cxcywh_to_xyxy, generalized_box_iou
from unimask.ops.id_maps import pairwise_binary_cross_entropy, pairwise_dice, pairwise_focal


class ClassTerm(nn.Module):
    """Cross-entropy of the queries over K + 1 classes, the last of which is no-object.

    Source: Mask2Former (2112.01527), Sec. 3.3 and 4.1; MaskFormer (2107.06278), Sec. 3.2; the cost is the
    negative probability, as in DETR (2005.12872), Sec. 3.1.
    """

    name: Final = "class"
    class_weights: Tensor

    def __init__(self, num_classes: int, no_object_weight: float, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.no_object = num_classes
        class_weights = torch.ones(num_classes + 1)
        class_weights[num_classes] = no_object_weight
        self.register_buffer("class_weights", class_weights, persistent=False)

    def cost(
        self, class_logits: Float[Tensor, "queries classes_and_none"], labels: Int64[Tensor, " targets"]
    ) -> Float[Tensor, "queries targets"]:
        """Return minus the probability that each query assigns to the label of each target."""
        return -class_logits.softmax(dim=1)[:, labels]

    def loss(
        self,
        class_logits: Float[Tensor, "batch queries classes_and_none"],
        labels: Int64[Tensor, "batch queries"],
    ) -> Float[Tensor, ""]:
        """Return the mean over all queries of the batch, weighted by the class weights of their labels.

        `labels` is `no_object` for unmatched queries.
        """
        return functional.cross_entropy(class_logits.flatten(0, 1), labels.flatten(), self.class_weights)


@dataclass(frozen=True, kw_only=True)
class MaskTerm:
    """Binary cross-entropy of the mask, averaged over the points.

    Source: Mask2Former (2112.01527), Sec. 3.3 and 4.1.
    """

    weight: float
    name: str = "mask"

    def cost(
        self, logits: Float[Tensor, "queries points"], labels: Float[Tensor, "targets points"]
    ) -> Float[Tensor, "queries targets"]:
        """Return the mean over the points for each query-target pair."""
        return pairwise_binary_cross_entropy(logits, labels)

    def loss(
        self,
        logits: Float[Tensor, "pairs points"],
        labels: Float[Tensor, "pairs points"],
        num_masks: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Return the mean over the points, summed over the pairs, divided by `num_masks`."""
        total = functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        return total / (logits.shape[1] * num_masks)


@dataclass(frozen=True, kw_only=True)
class FocalTerm:
    """Focal loss of the mask, averaged over the points: well-classified points count little.

    Source: MaskFormer (2107.06278), Sec. 4.1; RetinaNet (1708.02002), Eq. 5, with its alpha and gamma.
    """

    weight: float
    name: str = "mask"
    alpha: float = 0.25  # weight of the foreground; the background has 1 - alpha
    gamma: float = 2.0

    def cost(
        self, logits: Float[Tensor, "queries points"], labels: Float[Tensor, "targets points"]
    ) -> Float[Tensor, "queries targets"]:
        """Return the mean over the points for each query-target pair."""
        return pairwise_focal(logits, labels, self.alpha, self.gamma)

    def loss(
        self,
        logits: Float[Tensor, "pairs points"],
        labels: Float[Tensor, "pairs points"],
        num_masks: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Return the mean over the points, summed over the pairs, divided by `num_masks`."""
        probabilities = logits.sigmoid()
        wrong = probabilities + labels - 2 * probabilities * labels
        entropy = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        share = (1 - self.alpha) + (2 * self.alpha - 1) * labels
        return (share * wrong**self.gamma * entropy).sum() / (logits.shape[1] * num_masks)


@dataclass(frozen=True, kw_only=True)
class DiceTerm:
    """Dice loss: one minus the Dice coefficient of the mask, with 1 added to numerator and denominator.

    Source: V-Net (1606.04797), Eq. 3, as in the original code: the denominator has no squares.
    """

    weight: float
    name: str = "dice"

    def cost(
        self, logits: Float[Tensor, "queries points"], labels: Float[Tensor, "targets points"]
    ) -> Float[Tensor, "queries targets"]:
        """Return one minus the Dice coefficient of each query-target pair."""
        return pairwise_dice(logits, labels)

    def loss(
        self,
        logits: Float[Tensor, "pairs points"],
        labels: Float[Tensor, "pairs points"],
        num_masks: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Return one minus the Dice coefficient, summed over the pairs, divided by `num_masks`."""
        probabilities = logits.sigmoid()
        overlap = (probabilities * labels).sum(dim=1)
        total = probabilities.sum(dim=1) + labels.sum(dim=1)
        return (1 - (2 * overlap + 1) / (total + 1)).sum() / num_masks


@dataclass(frozen=True, kw_only=True)
class BoxTerm:
    """L1 distance between two boxes: of centre and size (cxcywh), as shares of the image size.

    Source: DETR (2005.12872), Sec. 3.1 and A.2.
    """

    weight: float
    name: str = "box"

    def cost(
        self, boxes: Float[Tensor, "queries 4"], targets: Float[Tensor, "targets 4"]
    ) -> Float[Tensor, "queries targets"]:
        """Return the sum over the four coordinates for each query-target pair."""
        return torch.cdist(boxes, targets, p=1)

    def loss(
        self, boxes: Float[Tensor, "pairs 4"], targets: Float[Tensor, "pairs 4"], count: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Return the sum over coordinates and pairs, divided by `count`."""
        return functional.l1_loss(boxes, targets, reduction="sum") / count


@dataclass(frozen=True, kw_only=True)
class BoxOverlapTerm:
    """One minus the generalised IoU of two boxes (cxcywh); unlike the L1 distance it is scale-invariant.

    Source: DETR (2005.12872), Sec. 3.1 and A.2; the cost omits the constant 1, as in its code.
    """

    weight: float
    name: str = "overlap"

    def cost(
        self, boxes: Float[Tensor, "queries 4"], targets: Float[Tensor, "targets 4"]
    ) -> Float[Tensor, "queries targets"]:
        """Return minus the generalised IoU of each query-target pair."""
        return -generalized_box_iou(cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(targets)[None])

    def loss(
        self, boxes: Float[Tensor, "pairs 4"], targets: Float[Tensor, "pairs 4"], count: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Return one minus the generalised IoU, summed over the pairs, divided by `count`."""
        overlaps = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
        return (1 - overlaps).sum() / count

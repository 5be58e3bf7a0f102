"""The criterion of per-pixel classification: cross-entropy, and Dice loss averaged over categories."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from unimask.structures import Losses, MaskPrediction, Segments, Uniform

VOID = -1


class PixelCriterion(nn.Module):
    """Computes the loss of a prediction in which query k stands for category k, without matching.

    Source: MaskFormer (2107.06278), Sec. 3.1.
    """

    def __init__(self, weight: float, dice_weight: float, deep_supervision: bool) -> None:
        super().__init__()
        self.weights = {"pixels": weight} | ({"category_dice": dice_weight} if dice_weight else {})
        self.deep_supervision = deep_supervision

    def forward(self, prediction: MaskPrediction, targets: tuple[Segments, ...], uniform: Uniform) -> Losses:
        """Return the terms of each supervised prediction, by depth; only the last without deep supervision.

        Cross-entropy is the mean over all pixels of the batch that are not void; both terms are 0 if all are.
        Logits are resized to the targets' size (bilinear). Computed in float32, also under autocast.
        `uniform` is not used.
        """
        labels = torch.stack([category_map(target) for target in targets])
        with torch.autocast(prediction.mask_features.device.type, enabled=False):
            every = range(len(prediction.mask_embeddings))
            logits = [
                _resized_logits(
                    prediction.mask_embeddings[index].float(), prediction.features(index).float(), labels
                )
                for index in (every if self.deep_supervision else every[-1:])
            ]
            terms = {
                name: torch.stack([_TERMS[name](layer, labels) for layer in logits]) for name in self.weights
            }
        return Losses(terms=terms, weights=self.weights)


def category_map(target: Segments) -> Int64[Tensor, "height width"]:
    """Return the category of each pixel, `VOID` if it has none; in overlaps that of the first layer."""
    labels = functional.pad(target.labels, (1, 0), value=VOID)
    found = labels[target.layers[0].long()]
    for layer in target.layers[1:]:
        found = torch.where(found == VOID, labels[layer.long()], found)
    return found


def _resized_logits(
    embeddings: Float[Tensor, "batch categories channels"],
    features: Float[Tensor, "batch channels height width"],
    labels: Int64[Tensor, "batch target_height target_width"],
) -> Float[Tensor, "batch categories target_height target_width"]:
    logits = torch.einsum("bkc,bchw->bkhw", embeddings, features)
    return functional.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)


def _cross_entropy(
    logits: Float[Tensor, "batch categories height width"], labels: Int64[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    total = functional.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp(min=1)


def category_dice(
    logits: Float[Tensor, "batch categories height width"], labels: Int64[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """Return 1 - Dice, averaged over the categories that occur in the batch; 0 if none does.

    The sums of a category are over all pixels of the batch that are not void.

    Source: V-Net (1606.04797), Sec. 3, without the squares.
    """
    known = (labels != VOID)[:, None]
    probabilities = logits.softmax(dim=1) * known
    truth = functional.one_hot(labels.clamp(min=0), logits.shape[1]).movedim(-1, 1) * known
    shared = (probabilities * truth).sum(dim=(0, 2, 3))
    sizes = truth.sum(dim=(0, 2, 3))
    dice = 2 * shared / (probabilities.sum(dim=(0, 2, 3)) + sizes).clamp(min=1)
    shown = sizes > 0
    return (1 - dice)[shown].sum() / shown.sum().clamp(min=1)


_TERMS = {"pixels": _cross_entropy, "category_dice": category_dice}

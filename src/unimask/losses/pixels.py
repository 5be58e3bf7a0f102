"""The loss of per-pixel classification: cross-entropy over the categories at every pixel of the target."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from unimask.structures import Losses, MaskPrediction, Segments, Uniform

VOID = -1


class PixelCriterion(nn.Module):
    """Measures a prediction in which query k stands for category k; nothing is matched, nothing is random.

    Source: MaskFormer (2107.06278), Sec. 3.1.
    """

    def __init__(self, weight: float, deep_supervision: bool) -> None:
        super().__init__()
        self.weights = {"pixels": weight}
        self.deep_supervision = deep_supervision

    def forward(self, prediction: MaskPrediction, targets: tuple[Segments, ...], uniform: Uniform) -> Losses:
        """The mean over all pixels of the batch that have a category; 0 where none has.

        Logits are resized to the targets' size (bilinear). Computed in float32, also under autocast.
        """
        labels = torch.stack([category_map(target) for target in targets])
        with torch.autocast(prediction.mask_features.device.type, enabled=False):
            every = range(len(prediction.mask_embeddings))
            losses = [
                _cross_entropy(
                    prediction.mask_embeddings[index].float(), prediction.features(index).float(), labels
                )
                for index in (every if self.deep_supervision else every[-1:])
            ]
        return Losses(terms={"pixels": torch.stack(losses)}, weights=self.weights)


def category_map(target: Segments) -> Int64[Tensor, "height width"]:
    """The category of each pixel, `VOID` where there is none; where segments overlap, of the first layer."""
    labels = functional.pad(target.labels, (1, 0), value=VOID)
    found = labels[target.layers[0].long()]
    for layer in target.layers[1:]:
        found = torch.where(found == VOID, labels[layer.long()], found)
    return found


def _cross_entropy(
    embeddings: Float[Tensor, "batch categories channels"],
    features: Float[Tensor, "batch channels height width"],
    labels: Int64[Tensor, "batch target_height target_width"],
) -> Float[Tensor, ""]:
    logits = torch.einsum("bkc,bchw->bkhw", embeddings, features)
    logits = functional.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    total = functional.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp(min=1)

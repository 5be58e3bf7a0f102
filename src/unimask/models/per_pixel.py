"""Per-pixel classification baselines on the same features as a mask classifier.

The prediction has the form of a mask classifier's: one query per category, whose class is that category with
probability 1. It is marked (`structures.MaskPrediction.per_pixel`), so that semantic postprocessing takes the
softmax over the queries.

Source: MaskFormer (2107.06278), Sec. 3.1 and 4.1: PerPixelBaseline and PerPixelBaseline+.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unimask.models.query_decoder import AttentionMask
from unimask.nn.layers import Perceptron

CERTAIN = 50.0  # a logit that gives probability 1 in float32


def category_logits(num_classes: int) -> Float[Tensor, "{num_classes} {num_classes+1}"]:
    """Return class logits that give query k the category k with probability 1."""
    return CERTAIN * torch.eye(num_classes, num_classes + 1)


class CategoryEmbeddings(nn.Module):
    """PerPixelBaseline: a linear classifier of the mask features, in place of a query decoder.

    It has no bias, since the layer that computes the mask features has one.
    """

    strides: tuple[int, ...] = ()  # it attends to no memory
    logits: Tensor

    def __init__(self, num_classes: int, mask_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, mask_channels) / mask_channels**0.5)
        self.register_buffer("logits", category_logits(num_classes), persistent=False)

    def forward(
        self,
        memory: Mapping[int, Float[Tensor, "batch _channels _height _width"]],
        attention_mask: AttentionMask,
    ) -> tuple[
        Float[Tensor, "1 batch categories categories_and_none"],
        Float[Tensor, "1 batch categories mask_channels"],
    ]:
        """Return class logits and mask embeddings, the same for every image of the batch."""
        batch = next(iter(memory.values())).shape[0]
        return self.logits.expand(1, batch, -1, -1), self.weight.expand(1, batch, -1, -1)


class CategoryHeads(nn.Module):
    """PerPixelBaseline+: the heads of a query decoder in which query k stands for category k."""

    logits: Tensor

    def __init__(self, channels: int, mask_channels: int, num_classes: int) -> None:
        super().__init__()
        self.mask_embedding = Perceptron(channels, channels, mask_channels, 3)
        self.register_buffer("logits", category_logits(num_classes), persistent=False)

    def forward(
        self, queries: Float[Tensor, "batch categories channels"]
    ) -> tuple[
        Float[Tensor, "batch categories categories_and_none"],
        Float[Tensor, "batch categories mask_channels"],
    ]:
        """Return class logits, which are constant, and the mask embedding of each category."""
        return self.logits.expand(queries.shape[0], -1, -1), self.mask_embedding(queries)

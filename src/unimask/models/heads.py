"""Prediction heads on query features: class logits, with mask embeddings or boxes."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unimask.nn.layers import Perceptron


class MaskHeads(nn.Module):
    """Predicts the class and the mask embedding of each query.

    Source: MaskFormer (2107.06278), Sec. 3.3; Mask2Former, Sec. 3.1.
    """

    def __init__(
        self,
        channels: int,
        mask_channels: int,
        num_classes: int,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ) -> None:
        super().__init__()
        self.classes = nn.Linear(channels, num_classes + 1)
        self.mask_embedding = Perceptron(channels, channels, mask_channels, 3, activation)

    def forward(
        self, queries: Float[Tensor, "batch queries channels"]
    ) -> tuple[Float[Tensor, "batch queries classes_and_none"], Float[Tensor, "batch queries mask_channels"]]:
        """Return class logits (no-object is the last class) and mask embeddings."""
        return self.classes(queries), self.mask_embedding(queries)


class BoxHeads(nn.Module):
    """Predicts the class and the box of each query.

    Source: DETR (2005.12872), Sec. 3.2.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classes = nn.Linear(channels, num_classes + 1)
        self.boxes = Perceptron(channels, channels, 4, 3)

    def forward(
        self, queries: Float[Tensor, "batch queries channels"]
    ) -> tuple[
        Float[Tensor, "batch queries classes_and_none"],
        Float[Tensor, "batch queries 4"],
        Float[Tensor, "batch queries channels"],
    ]:
        """Return class logits (no-object is the last class), boxes (cxcywh in [0, 1]), and the queries.

        The queries are returned unchanged, for the mask head (`models/detr_masks.py`).
        """
        return self.classes(queries), self.boxes(queries).sigmoid(), queries

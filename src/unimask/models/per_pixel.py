"""Per-pixel classification from the same features: query k stands for category k, each pixel chooses one.

The prediction has the form of a mask classifier's, with a query per category that is certain of it. Read as
semantic segments, it gives each pixel the category of its largest logit.

Source: MaskFormer (2107.06278), Sec. 3.1 and 4.1: PerPixelBaseline and PerPixelBaseline+.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unimask.models.query_decoder import AttentionMask
from unimask.nn.layers import Perceptron

CERTAIN = 50.0  # a logit whose probability is 1 in float32


def category_logits(num_classes: int) -> Float[Tensor, "{num_classes} {num_classes+1}"]:
    """Return the class logits of queries each of which is certain of its own category."""
    return CERTAIN * torch.eye(num_classes, num_classes + 1)


def centred(
    embeddings: Float[Tensor, "*batch categories channels"],
) -> Float[Tensor, "*batch categories channels"]:
    """Embeddings whose mean over the categories is 0: a softmax over the categories is not changed by it.

    So logits are small, and a sigmoid of them, which postprocessing takes, does not saturate.
    """
    return embeddings - embeddings.mean(dim=-2, keepdim=True)


class CategoryEmbeddings(nn.Module):
    """PerPixelBaseline: a linear classifier of the mask features, in the place of a query decoder.

    It has no bias of its own: the mask features have one.
    """

    strides: tuple[int, ...] = ()  # of the memory that it attends to
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
        """Return the same for every image of the batch."""
        batch = next(iter(memory.values())).shape[0]
        embeddings = centred(self.weight)
        return self.logits.expand(1, batch, -1, -1), embeddings.expand(1, batch, -1, -1)


class CategoryHeads(nn.Module):
    """PerPixelBaseline+: the heads of a query decoder where query k stands for category k."""

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
        """Class logits, which do not depend on the queries, and the embedding of each category."""
        return self.logits.expand(queries.shape[0], -1, -1), centred(self.mask_embedding(queries))

"""The whole model: a picture becomes a set of (class, mask) pairs."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from unimask.models.per_pixel import CategoryEmbeddings
from unimask.models.query_decoder import QueryDecoder, Visibility
from unimask.structures import MaskPrediction


class MaskClassifier(nn.Module):
    """Backbone, pixel decoder, query decoder: Mask2Former, its ablations, MaskFormer.

    `visibility` makes the function that tells where queries may look from the mask features.

    Source: Mask2Former, Sec. 3.1; MaskFormer (2107.06278), Sec. 3.3.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pixel_decoder: nn.Module,
        query_decoder: QueryDecoder | CategoryEmbeddings,
        visibility: Visibility,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.query_decoder = query_decoder
        self.visibility = visibility

    def forward(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        valid: Bool[Tensor, "batch height width"] | None = None,
    ) -> MaskPrediction:
        """Class logits and factorised masks, per prediction in order of depth; `pixels` are normalised.

        `valid` plays no part: padding is seen like any pixel, as in the original. Models of boxes mask it.
        """
        memory, mask_features = self.pixel_decoder(self.backbone(pixels))
        sizes = {s: (memory[s].shape[2], memory[s].shape[3]) for s in self.query_decoder.strides}
        look = self.visibility(mask_features, sizes)
        class_logits, mask_embeddings = self.query_decoder(memory, look)
        return MaskPrediction(
            class_logits=class_logits, mask_embeddings=mask_embeddings, mask_features=mask_features
        )

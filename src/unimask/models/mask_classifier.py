"""The mask classifier: predicts a set of (class, mask) pairs from an image."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unimask.models.per_pixel import CategoryEmbeddings
from unimask.models.query_decoder import AttentionMask, QueryDecoder, Visibility
from unimask.structures import MaskPrediction, Size


class MaskClassifier(nn.Module):
    """Mask2Former, its ablations, or MaskFormer: a backbone, a pixel decoder and a query decoder.

    `visibility` returns the attention mask of the queries, given the mask features. `per_pixel`: the query
    decoder is a classifier of pixels (`models/per_pixel.py`).

    Source: Mask2Former, Sec. 3.1; MaskFormer (2107.06278), Sec. 3.3.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pixel_decoder: nn.Module,
        query_decoder: QueryDecoder | CategoryEmbeddings,
        visibility: Visibility,
        *,
        per_pixel: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.query_decoder = query_decoder
        self.visibility = visibility
        self.per_pixel = per_pixel

    def forward(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        valid: Bool[Tensor, "batch height width"] | None = None,
    ) -> MaskPrediction:
        """Return class logits and factorised masks, with predictions in order of depth.

        `pixels` are normalised. `valid` is not used: padding is treated like any other pixel, as in the
        original.
        """
        return self._predict(pixels, self.visibility)

    @torch.no_grad()
    def attention_masks(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Bool[Tensor, "batch queries _height _width"], ...]:
        """Return the attention mask of each layer at the size of its memory: True where a query may attend.

        A first layer without a prediction before it has no attention mask and is left out.
        """
        masks: list[Tensor] = []

        def recording(mask_features: Tensor, sizes: Mapping[int, Size]) -> AttentionMask:
            attention_mask = self.visibility(mask_features, sizes)

            def record(stride: int, embeddings: Tensor) -> Tensor | None:
                visible = attention_mask(stride, embeddings)
                shape = (*embeddings.shape[:2], *sizes[stride])
                everything = torch.ones(shape, dtype=torch.bool, device=embeddings.device)
                masks.append(everything if visible is None else visible.reshape(shape))
                return visible

            return record

        self._predict(pixels, recording)
        return tuple(masks)

    def _predict(
        self, pixels: Float[Tensor, "batch 3 height width"], visibility: Visibility
    ) -> MaskPrediction:
        memory, mask_features = self.pixel_decoder(self.backbone(pixels))
        sizes = {s: (memory[s].shape[2], memory[s].shape[3]) for s in self.query_decoder.strides}
        attention_mask = visibility(mask_features, sizes)
        class_logits, mask_embeddings = self.query_decoder(memory, attention_mask)
        return MaskPrediction(
            class_logits=class_logits,
            mask_embeddings=mask_embeddings,
            mask_features=mask_features[None],
            per_pixel=self.per_pixel,
        )

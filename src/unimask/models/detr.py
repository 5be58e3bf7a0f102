"""DETR: predicts a set of (class, box) pairs from an image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from unimask.models.query_decoder import QueryDecoder, attend_everywhere
from unimask.models.transformer_encoder import TransformerEncoder
from unimask.ops.positions import padded_sine_positions
from unimask.structures import BoxPrediction, Size


@dataclass(frozen=True, kw_only=True)
class DetrStates:
    """The prediction of a `Detr` with its intermediate results, which the mask head takes."""

    maps: Mapping[int, Tensor]  # of the backbone: stride -> map
    projected: Float[Tensor, "batch channels height width"]  # of stride `Detr.stride`, before the encoder
    memory: Float[Tensor, "batch channels height width"]  # after the encoder
    valid: Bool[Tensor, "batch height width"]  # cells that show the image
    class_logits: Float[Tensor, "predictions batch queries classes_and_none"]
    boxes: Float[Tensor, "predictions batch queries 4"]
    queries: Float[Tensor, "predictions batch queries channels"]  # after the norm, as the heads take them


def valid_cells(
    valid: Bool[Tensor, "batch height width"], size: Size
) -> Bool[Tensor, "batch {size[0]} {size[1]}"]:
    """Return which cells of a map of this size show the image: nearest neighbour, as in the original."""
    return functional.interpolate(valid[None].float(), size)[0] > 0.5


EncoderInput = Callable[[Tensor, Tensor], Tensor]
"""Computes the input of the encoder from a map and the positions of its cells.

Both are (batch, channels, height, width)."""


def without_positions(maps: Tensor, positions: Tensor) -> Tensor:
    """Return the maps unchanged: positions are added in the attention only."""
    return maps


def with_positions(maps: Tensor, positions: Tensor) -> Tensor:
    """Return the maps plus the positions, so that the values of the attention include positions, too.

    Source: DETR (2005.12872), Table 3 ("at input"), where it replaces the positions in the attention.
    """
    return maps + positions


class Detr(nn.Module):
    """DETR: a backbone, a transformer encoder and a query decoder.

    The encoder takes the backbone's map of a single stride, that of `query_decoder` (32 in the paper).
    `projection` maps it to the channels of the transformer, and `encoder_input` may add positions to it.

    Source: DETR (2005.12872), Sec. 3.2, Fig. 2 and A.3.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projection: nn.Module,
        encoder: TransformerEncoder,
        query_decoder: QueryDecoder,
        encoder_input: EncoderInput = without_positions,
    ) -> None:
        super().__init__()
        self.encoder_input = encoder_input
        self.backbone = backbone
        self.projection = projection
        self.encoder = encoder
        self.query_decoder = query_decoder
        (self.stride,) = set(query_decoder.strides)

    def forward(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        valid: Bool[Tensor, "batch height width"] | None = None,
    ) -> BoxPrediction:
        """Return class logits and boxes after every layer; `pixels` are normalised.

        `valid` is False at padding; the valid pixels are a rectangle in the upper left corner of the canvas.
        None means that all pixels are valid. Encoder and decoder never attend to padding, but the backbone
        does not mask it.
        """
        states = self.states(pixels, valid)
        return BoxPrediction(class_logits=states.class_logits, boxes=states.boxes)

    def states(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        valid: Bool[Tensor, "batch height width"] | None,
    ) -> DetrStates:
        """Return the prediction of `forward` with its intermediate results."""
        if valid is None:
            valid = torch.ones((pixels.shape[0], *pixels.shape[2:]), dtype=torch.bool, device=pixels.device)
        maps = self.backbone(pixels)
        return self.detect(maps, valid_cells(valid, tuple(maps[self.stride].shape[2:])))

    def detect(
        self,
        maps: Mapping[int, Float[Tensor, "batch _channels _height _width"]],
        valid: Bool[Tensor, "batch height width"],
    ) -> DetrStates:
        """Return the prediction from the backbone's maps; `valid` has the size of the encoder's map."""
        projected = self.projection(maps[self.stride])
        positions = padded_sine_positions(valid, projected.shape[1])
        placed = self.encoder_input(projected, positions.movedim(-1, 1))
        memory = self.encoder(placed, positions.flatten(1, 2), valid)
        class_logits, boxes, queries = self.query_decoder(
            {self.stride: memory}, attend_everywhere, {self.stride: valid}
        )
        return DetrStates(
            maps=maps,
            projected=projected,
            memory=memory,
            valid=valid,
            class_logits=class_logits,
            boxes=boxes,
            queries=queries,
        )

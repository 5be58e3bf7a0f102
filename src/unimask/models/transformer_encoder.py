"""The transformer encoder of DETR and of MaskFormer's pixel decoder: dense self-attention over one map."""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor, nn

from unimask.nn.attention import SelfAttention
from unimask.nn.transformer import EncoderLayer


def encoder_layer(channels: int, heads: int, feedforward_channels: int, dropout: float) -> EncoderLayer:
    """Return a layer for `TransformerEncoder`: dense self-attention and a feed-forward."""
    return EncoderLayer(SelfAttention(channels, heads, dropout), channels, feedforward_channels, dropout)


class TransformerEncoder(nn.Module):
    """Encoder layers over one map, usually at stride 32; there is no norm after the last.

    Source: Attention Is All You Need, Sec. 3.1; DETR (2005.12872), Sec. 3.2 and A.3.
    """

    def __init__(self, layers: Sequence[EncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        maps: Float[Tensor, "batch channels height width"],
        positions: Float[Tensor, "#batch height*width channels"],
        valid: Bool[Tensor, "batch height width"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the refined map; `positions` of the cells, row by row, are added in every layer.

        Cells that are not `valid` (padding) are not attended to, and their own results are undefined. None
        means that all cells are valid. At least one cell of each image must be valid.
        """
        tokens = maps.flatten(2).transpose(1, 2)
        visible = None if valid is None else valid.flatten(1)[:, None]
        for layer in self.layers:
            tokens = layer(tokens, positions, visible)
        return tokens.transpose(1, 2).unflatten(2, maps.shape[2:])

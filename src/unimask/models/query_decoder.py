"""The query decoder: queries attend to the memory, layer by layer, with a prediction after each layer.

The decoders of DETR, MaskFormer and Mask2Former are settings of this one. It does not depend on boxes or
masks: predictions come from `heads`, and attention masks from a function.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unimask.nn.attention import Memory
from unimask.nn.layers import ConstantEmbedding
from unimask.nn.transformer import DecoderLayer
from unimask.ops.dispatch import resize_maps
from unimask.ops.positions import padded_sine_positions, sine_positions
from unimask.structures import Size

AttentionMask = Callable[[int, Tensor], Tensor | None]
"""Returns the attention mask for the memory of a stride, given the mask embeddings of the last prediction.

The mask is (batch, queries, cells), True where a query may attend; None means everywhere."""

Visibility = Callable[[Tensor, Mapping[int, Size]], AttentionMask]
"""Returns an `AttentionMask`, given the mask features of a batch and the memory's size at each stride."""


def foreground(
    mask_logits: Float[Tensor, "batch queries cells"],
) -> Bool[Tensor, "batch queries cells"]:
    """Return which cells of the memory each query may attend to: the foreground of its own last mask.

    Foreground is logit >= 0 (probability 0.5). A query whose mask is empty attends everywhere, because a
    softmax over no keys is undefined. No gradient flows through the result.

    Source: Mask2Former, Sec. 3.2.1, Eq. 2-3; the rule for empty masks is only in the original code.
    """
    visible = mask_logits >= 0
    return visible | ~visible.any(dim=-1, keepdim=True)


def masked_visibility(
    mask_features: Float[Tensor, "batch channels height width"], sizes: Mapping[int, Size]
) -> AttentionMask:
    """Let each query attend to the foreground of its own last mask, at the size of the memory.

    Mask features are resized once per stride and then multiplied with the mask embeddings. The result is that
    of resizing each mask, because resizing and the product are linear and act on different dimensions.
    """
    resized = {stride: resize_maps(mask_features.detach(), size) for stride, size in sizes.items()}

    def attention_mask(stride: int, mask_embeddings: Tensor) -> Tensor:
        # under mixed precision, autocast would convert the features again for each layer
        resized[stride] = resized[stride].to(mask_embeddings.dtype)
        return foreground(mask_embeddings.detach() @ resized[stride])

    return attention_mask


def full_visibility(
    mask_features: Float[Tensor, "batch channels height width"], sizes: Mapping[int, Size]
) -> AttentionMask:
    """Let every query attend everywhere."""
    return attend_everywhere


def attend_everywhere(stride: int, embeddings: Tensor) -> None:
    """Return None: queries may attend everywhere."""


EVERYTHING_VALID: Mapping[int, Tensor] = MappingProxyType({})


class QueryDecoder(nn.Module):
    """Decoder layers that attend to memory of several strides in turn, with a prediction after each layer.

    With `predict_before_layers` there is a prediction before the first layer, too; all predictions share the
    norm and the heads. `query_features`, `query_positions` (one row per query) and `level_embedding` (one row
    per stride) are embeddings, learned or constant. `projections` map the memory of each stride to the
    decoder's channels.

    Source: Mask2Former, Sec. 3.2; DETR, Sec. A.3 (positions added in every layer).
    """

    def __init__(
        self,
        *,
        layers: Sequence[DecoderLayer],
        heads: nn.Module,
        projections: Mapping[int, nn.Module],
        query_features: nn.Embedding | ConstantEmbedding,
        query_positions: nn.Embedding,
        level_embedding: nn.Embedding | ConstantEmbedding,
        channels: int,
        predict_before_layers: bool,
    ) -> None:
        super().__init__()
        strides = tuple(projections)
        self.strides = tuple(strides[index % len(strides)] for index in range(len(layers)))  # of each layer
        self.first_prediction = 0 if predict_before_layers else 1
        self.query_features = query_features
        self.query_positions = query_positions
        self.level_embedding = level_embedding
        self.projections = nn.ModuleDict({str(stride): projections[stride] for stride in strides})
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(channels)
        self.heads = heads

    def forward(
        self,
        memory: Mapping[int, Float[Tensor, "batch _channels _height _width"]],
        attention_mask: AttentionMask,
        valid: Mapping[int, Bool[Tensor, "batch _height _width"]] = EVERYTHING_VALID,
    ) -> tuple[Float[Tensor, "predictions batch queries _"], ...]:
        """Return the outputs of the heads, stacked by depth: class logits, then mask embeddings or boxes.

        `attention_mask` is called before each layer, with the mask embeddings (or boxes) of the last
        prediction; without a prediction before it, the first layer attends everywhere. `valid` maps a stride
        to its cells, False at padding, which is not attended to and does not count in the positions; a stride
        that is missing has no padding.
        """
        levels = self._memories(memory, valid)
        batch = next(iter(levels.values())).keys.shape[0]
        queries = self.query_features.weight.expand(batch, -1, -1)
        positions = self.query_positions.weight[None]
        shown = {stride: cells.flatten(1)[:, None] for stride, cells in valid.items()}
        predictions = [self.heads(self.norm(queries))]
        masks = chain(repeat(attend_everywhere, self.first_prediction), repeat(attention_mask))
        for layer, stride, mask in zip(self.layers, self.strides, masks, strict=False):
            visible = _both(mask(stride, predictions[-1][1]), shown.get(stride))
            queries = layer(queries, positions, levels[stride], visible)
            predictions.append(self.heads(self.norm(queries)))
        return tuple(
            torch.stack(outputs) for outputs in zip(*predictions[self.first_prediction :], strict=True)
        )

    def _memories(self, memory: Mapping[int, Tensor], valid: Mapping[int, Tensor]) -> dict[int, Memory]:
        """Return the memory of each stride as tokens plus level embedding; keys also include positions."""
        memories = {}
        for name, embedding in zip(self.projections, self.level_embedding.weight.unbind(), strict=True):
            stride = int(name)
            maps = self.projections[name](memory[stride])
            _, channels, height, width = maps.shape
            values = maps.flatten(2).transpose(1, 2) + embedding
            if stride in valid:
                positions = padded_sine_positions(valid[stride], channels, dtype=embedding.dtype)
            else:
                positions = sine_positions(
                    height, width, channels, device=maps.device, dtype=embedding.dtype
                )[None]
            memories[stride] = Memory(keys=values + positions.flatten(1, 2), values=values)
        return memories


def _both(
    visible: Bool[Tensor, "batch queries cells"] | None, valid: Bool[Tensor, "batch 1 cells"] | None
) -> Bool[Tensor, "batch #queries cells"] | None:
    """Return where both `visible` and `valid` are True; None means True everywhere."""
    if visible is None or valid is None:
        return valid if visible is None else visible
    return visible & valid

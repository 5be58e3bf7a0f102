"""The mask head of DETR: attention maps of the queries, refined by a small feature pyramid."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from unimask.models.detr import Detr, DetrStates
from unimask.structures import BoxMaskPrediction

GROUPS = 8  # of the norms


class QueryAttentionMaps(nn.Module):
    """The attention weights of each query over the memory: multi-head attention without values.

    The softmax of a query runs over all heads and cells together.

    Source: DETR (2005.12872), Sec. 4.2, Fig. 8; the softmax as in its code.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        for layer in (self.query, self.key):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        memory: Float[Tensor, "batch channels height width"],
        valid: Bool[Tensor, "batch height width"],
    ) -> Float[Tensor, "batch queries heads height width"]:
        """Return the attention maps: they sum to 1 over heads and cells, and are 0 at cells not `valid`."""
        query = self.query(queries).unflatten(-1, (self.heads, -1))
        key = self.key(memory.movedim(1, -1)).unflatten(-1, (self.heads, -1))
        scores = torch.einsum("bqnc,bhwnc->bqnhw", query * query.shape[-1] ** -0.5, key)
        scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
        return scores.flatten(2).softmax(dim=-1).view(scores.shape)


class MaskPyramid(nn.Module):
    """A feature pyramid from attention maps at the stride of the encoder to mask logits at stride 4.

    In each step the maps are resized (nearest neighbour) to the size of the backbone's next finer map, which
    is projected to the same channels and added. `in_channels` are the channels of these maps, from low to
    high resolution. The pyramid's own channels are first `channels` + `heads`, then `widest` / 2, / 4 and so
    on.

    Source: DETR, Sec. 4.2, Fig. 8; widths as in its code.
    """

    def __init__(self, *, channels: int, heads: int, widest: int, in_channels: tuple[int, ...]) -> None:
        super().__init__()
        falling = [widest // 2**step for step in range(1, len(in_channels) + 2)]
        widths = [channels + heads, channels + heads, *falling]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, width) for width in widths[1:])
        self.adapters = nn.ModuleList(
            nn.Conv2d(given, width, 1) for given, width in zip(in_channels, falling, strict=False)
        )
        self.mask = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.get_parameter("bias"))

    def forward(
        self,
        projected: Float[Tensor, "batch channels height width"],
        attention: Float[Tensor, "batch queries heads height width"],
        maps: tuple[Float[Tensor, "batch _channels _height _width"], ...],
    ) -> Float[Tensor, "batch queries map_height map_width"]:
        """Return the mask logits of the queries with these attention maps, at the size of the last map."""
        masks = attention.shape[:2]
        shared = projected[:, None].expand(-1, masks[1], -1, -1, -1)
        inputs = torch.cat((shared, attention), dim=2).flatten(0, 1)
        refined = self._refine(self._refine(inputs, 0), 1)
        for index, (adapter, features) in enumerate(zip(self.adapters, maps, strict=True)):
            grown = functional.interpolate(refined, tuple(features.shape[2:]), mode="nearest")
            joined = adapter(features)[:, None] + grown.unflatten(0, masks)
            refined = self._refine(joined.flatten(0, 1), index + 2)
        logits: Tensor = self.mask(refined)[:, 0]
        return logits.unflatten(0, masks)

    def _refine(self, maps: Tensor, index: int) -> Tensor:
        refined: Tensor = self.norms[index](self.convolutions[index](maps)).relu()
        return refined


class DetrWithMasks(nn.Module):
    """A `Detr` with a mask head on the queries of its last layer, for panoptic segmentation.

    Source: DETR, Sec. 4.2.
    """

    def __init__(self, detr: Detr, attention: QueryAttentionMaps, pyramid: MaskPyramid) -> None:
        super().__init__()
        self.detr = detr
        self.attention = attention
        self.pyramid = pyramid

    @property
    def backbone(self) -> nn.Module:
        """The backbone of the detector."""
        return self.detr.backbone

    def forward(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        valid: Bool[Tensor, "batch height width"] | None = None,
    ) -> BoxMaskPrediction:
        """Return class logits and boxes after every layer, and mask logits after the last one.

        `pixels` and `valid` as in `Detr.forward`.
        """
        states = self.detr.states(pixels, valid)
        attention = self.attention(states.queries[-1], states.memory, states.valid)
        masks = self.pyramid(states.projected, attention, self.finer_maps(states))
        return BoxMaskPrediction(class_logits=states.class_logits, boxes=states.boxes, mask_logits=masks)

    def finer_maps(self, states: DetrStates) -> tuple[Float[Tensor, "batch _channels _height _width"], ...]:
        """Return the backbone's maps for the pyramid: those finer than the encoder's, from coarse to fine."""
        strides = sorted((stride for stride in states.maps if stride < self.detr.stride), reverse=True)
        return tuple(states.maps[stride] for stride in strides)

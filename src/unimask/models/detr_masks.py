"""Masks on top of boxes: attention maps of the queries, refined by a small feature pyramid."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from unimask.models.detr import Detr, DetrStates
from unimask.structures import BoxMaskPrediction

GROUPS = 8  # of the norms


class QueryAttentionMaps(nn.Module):
    """Where each query attends in the memory: the weights of a multi-head attention without values.

    Source: DETR (2005.12872), Sec. 4.2, Fig. 8. In the code the softmax runs over all heads and cells of a
    query together.
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
        """Return the maps; their sum over heads and valid cells is 1, cells that are not valid have 0."""
        query = self.query(queries).unflatten(-1, (self.heads, -1))
        key = self.key(memory.movedim(1, -1)).unflatten(-1, (self.heads, -1))
        scores = torch.einsum("bqnc,bhwnc->bqnhw", query * query.shape[-1] ** -0.5, key)
        scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
        return scores.flatten(2).softmax(dim=-1).view(scores.shape)


class MaskPyramid(nn.Module):
    """From attention maps at the stride of the encoder to a mask at stride 4, up through the backbone's maps.

    `in_channels` are the backbone's, from low to high resolution. At each step the maps grow to the next
    ones' size (nearest) and the backbone's map, brought to the same width, is added. Widths are first
    `channels` + `heads`, then `widest` / 2, / 4 and so on.

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
        """Mask logits of some queries of each image, at the size of the last map."""
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
    """A `Detr` whose final queries also get masks, for panoptic segmentation.

    Source: DETR, Sec. 4.2.
    """

    def __init__(self, detr: Detr, attention: QueryAttentionMaps, pyramid: MaskPyramid) -> None:
        super().__init__()
        self.detr = detr
        self.attention = attention
        self.pyramid = pyramid

    @property
    def backbone(self) -> nn.Module:
        """That of the detector."""
        return self.detr.backbone

    def forward(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        valid: Bool[Tensor, "batch height width"] | None = None,
    ) -> BoxMaskPrediction:
        """Classes and boxes after every layer, masks after the last; `pixels` and `valid` as for `Detr`."""
        states = self.detr.states(pixels, valid)
        attention = self.attention(states.queries[-1], states.memory, states.valid)
        masks = self.pyramid(states.projected, attention, self.finer_maps(states))
        return BoxMaskPrediction(class_logits=states.class_logits, boxes=states.boxes, mask_logits=masks)

    def finer_maps(self, states: DetrStates) -> tuple[Float[Tensor, "batch _channels _height _width"], ...]:
        """Return the backbone's maps for the pyramid: those finer than the encoder's, coarse to fine."""
        strides = sorted((stride for stride in states.maps if stride < self.detr.stride), reverse=True)
        return tuple(states.maps[stride] for stride in strides)

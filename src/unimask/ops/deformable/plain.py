"""Deformable sampling: the inner loop of deformable attention, in plain tensor operations."""

from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from unimask.structures import Size


def deformable_sampling(
    values: Float[Tensor, "batch cells heads channels"],
    sizes: tuple[Size, ...],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    """Return, per query and head, the weighted sum of values sampled at a few points of every level.

    `values` holds the maps of all levels one after the other, row by row; `sizes` are their (height, width).
    `locations` are (x, y), where each map spans [0, 1]; sampling is bilinear, with zeros outside the map. All
    tensors must have the same type, in which the result is computed. Faster versions are tested against this
    one.

    Source: Deformable DETR (2010.04159), Sec. 4.1, Eq. 3.
    """
    batch, _, heads, channels = values.shape
    queries = locations.shape[1]
    maps = values.permute(0, 2, 3, 1).flatten(0, 1)  # (batch heads, channels, cells), the only copy
    grids = (
        (2 * locations - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    )  # (levels, batch heads, points, queries, 2)
    shares = weights.permute(3, 0, 2, 4, 1).flatten(1, 2)[
        :, :, None
    ]  # (levels, batch heads, 1, points, queries)
    levels = maps.split([height * width for height, width in sizes], dim=2)
    sums = []
    for level, size, grid, share in zip(levels, sizes, grids.unbind(), shares.unbind(), strict=True):
        sampled = functional.grid_sample(level.unflatten(2, size), grid, align_corners=False)
        sums.append((sampled * share).sum(dim=2))  # over points: (batch heads, channels, queries)
    return reduce(torch.add, sums).reshape(batch, heads * channels, queries).transpose(1, 2)

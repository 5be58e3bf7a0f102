"""Group normalisation in place: no second map of the same size, and each value read from memory twice."""

import torch
from jaxtyping import Float
from torch import Tensor

CELLS_AT_ONCE = 1024
"""So many cells of a map fit into the cache of a processor."""


def overwrite_with_group_norm(
    maps: Float[Tensor, "batch channels height width"],
    groups: int,
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    eps: float,
) -> Float[Tensor, "batch channels height width"]:
    """As `functional.group_norm`, to rounding; the values are written over `maps`, which come out.

    `maps` lie in memory in the order channels_last. Not differentiable.
    """
    for one in maps:
        parts = one.permute(1, 2, 0).flatten(0, 1).split(CELLS_AT_ONCE)
        sums = torch.zeros((2, len(weight)), dtype=torch.float64, device=maps.device)
        for part in parts:  # sums of few numbers in float32, of many in float64
            sums += torch.stack([part.sum(dim=0), part.square().sum(dim=0)])
        count = one.numel() // groups
        mean, square = sums.unflatten(1, (groups, -1)).sum(dim=2) / count
        deviation = (square - mean.square()).clamp(min=0).add(eps).sqrt()
        per_group = len(weight) // groups
        scale = weight / deviation.repeat_interleave(per_group)
        shift = (bias - mean.repeat_interleave(per_group) * scale).to(maps.dtype)
        scale = scale.to(maps.dtype)
        for part in parts:
            torch.addcmul(shift, part, scale, out=part)
    return maps

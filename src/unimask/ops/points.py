"""Bilinear sampling at points: of feature maps, of factorised mask logits, and of masks in an id map.

Points are (x, y) in [0, 1], relative to the map: (0, 0) is the upper left corner of the upper left pixel.
Values are interpolated between pixel centres and 0 outside the map, so they fall towards 0 in the outer half
pixel, as with `grid_sample` and `align_corners=False`.
"""

from typing import Any

import torch
from jaxtyping import Float, Int16, Int64
from torch import Tensor
from torch.nn import functional

VALUES_AT_ONCE = 2**19
"""How many values at points are computed at a time on the CPU, where the backward pass needs none of them."""


def sample_features(
    features: Float[Tensor, "batch channels height width"], points: Float[Tensor, "batch points 2"]
) -> Float[Tensor, "batch channels points"]:
    """Return the features of each image at its points.

    Fastest where `features` has the memory format channels_last: each point then reads four contiguous rows.
    """
    batch, channels, height, width = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
    indices, weights = _neighbours(points, height, width)
    first = torch.arange(batch, device=features.device)[:, None, None] * (height * width)
    values = functional.embedding_bag(
        (indices + first).flatten(0, 1),
        rows,
        per_sample_weights=weights.flatten(0, 1).to(rows.dtype),
        mode="sum",
    )
    return values.unflatten(0, (batch, -1)).transpose(1, 2)


def _neighbours(
    points: Float[Tensor, "*points 2"], height: int, width: int
) -> tuple[Int64[Tensor, "*points 4"], Float[Tensor, "*points 4"]]:
    """Return the four pixels around each point (indices into the flat map) and their weights, 0 outside."""
    x, y = _pixel_position(points[..., 0], width), _pixel_position(points[..., 1], height)
    left, top = x.floor(), y.floor()
    right_weight, bottom_weight = x - left, y - top
    columns = torch.stack([left, left + 1, left, left + 1], dim=-1).long()
    rows = torch.stack([top, top, top + 1, top + 1], dim=-1).long()
    weights = torch.stack(
        [
            (1 - right_weight) * (1 - bottom_weight),
            right_weight * (1 - bottom_weight),
            (1 - right_weight) * bottom_weight,
            right_weight * bottom_weight,
        ],
        dim=-1,
    )
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    indices = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    return indices, weights * inside


def _pixel_position(coordinate: Float[Tensor, "*points"], size: int) -> Float[Tensor, "*points"]:
    """Return the position of a coordinate in pixels, 0 at the first centre; rounded as by `grid_sample`."""
    from_center = 2 * coordinate - 1
    return ((from_center + 1) * size - 1) / 2


def logits_at_shared_points(
    embeddings: Float[Tensor, "queries channels"],
    features: Float[Tensor, "channels height width"],
    points: Float[Tensor, "points 2"],
) -> Float[Tensor, "queries points"]:
    """Return the mask logits of all queries of an image at the same points.

    Sampling and the product with the embeddings commute, so the product is computed on whichever is smaller:
    the map or the points.
    """
    height, width = features.shape[1:]
    if height * width > points.shape[0]:
        return embeddings @ sample_features(features[None], points[None])[0]
    maps = (features.flatten(1).T @ embeddings.T).T.unflatten(1, (height, width))
    return sample_features(maps[None], points[None])[0]


class _MapsAtPoints(torch.autograd.Function):
    """Samples maps. Sampling is linear in the maps, so only the points are saved for the backward pass."""

    @staticmethod
    def forward(context: Any, maps: Tensor, grid: Tensor) -> Tensor:
        context.save_for_backward(grid)
        context.size = maps.shape[1:]
        values = functional.grid_sample(maps[:, None], grid[:, None], mode="bilinear", align_corners=False)
        return values[:, 0, 0]

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (grid,) = context.saved_tensors
        only_the_size_counts = gradients[0].new_zeros(()).expand(grid.shape[0], 1, *context.size)
        bilinear, zeros, align_corners = 0, 0, False
        gradient_of_maps, _ = torch.ops.aten.grid_sampler_2d_backward(
            gradients[0][:, None, None],
            only_the_size_counts,
            grid[:, None],
            bilinear,
            zeros,
            align_corners,
            [True, False],
        )
        return gradient_of_maps[:, 0], None


def sample_maps(
    maps: Float[Tensor, "maps height width"], points: Float[Tensor, "maps points 2"]
) -> Float[Tensor, "maps points"]:
    """Return the values of each map at its own points.

    Differentiable in `maps`, not in `points`; the maps are not kept for the backward pass.
    """
    values: Tensor = _MapsAtPoints.apply(maps, 2 * points - 1)
    return values


def sample_all_labels(
    layers: Int16[Tensor, "layers height width"], count: int, points: Float[Tensor, "points 2"]
) -> Float[Tensor, "{count} points"]:
    """Return the masks of the segments 1..count at the same points, sampled exactly from the id map.

    The bilinear value of a mask at a point is the sum of the weights of those of the four pixels around the
    point that have the segment's number, so no dense masks are needed.
    """
    height, width = layers.shape[1:]
    indices, weights = _neighbours(points, height, width)
    labels = torch.zeros((count + 1, points.shape[0]), device=layers.device)
    for layer in layers.flatten(1):
        numbers = layer.take(indices).long()
        for corner in range(4):
            labels.scatter_add_(0, numbers[None, :, corner], weights[None, :, corner])
    return labels[1:]


def sample_labels(
    layers: Int16[Tensor, "layers height width"],
    numbers: Int64[Tensor, " segments"],
    points: Float[Tensor, "segments points 2"],
) -> Float[Tensor, "segments points"]:
    """Return the masks of the segments `numbers` (1-based), each at its own points, from the id map."""
    padded = functional.pad(layers, (1, 1, 1, 1))  # 0 outside the image: no segment
    at_once = _at_once(points)
    parts = zip(numbers.split(at_once), points.split(at_once), strict=True)
    return torch.cat([_labels_of_some(layers, padded, *part) for part in parts])


def _at_once(points: Float[Tensor, "maps points 2"]) -> int:
    """Return how many maps are sampled at a time; all of them on devices other than the CPU."""
    if points.device.type != "cpu":
        return max(1, len(points))
    return max(1, VALUES_AT_ONCE // max(1, points.shape[1]))


def _labels_of_some(
    layers: Int16[Tensor, "layers height width"],
    padded: Int16[Tensor, "layers padded_height padded_width"],
    numbers: Int64[Tensor, " segments"],
    points: Float[Tensor, "segments points 2"],
) -> Float[Tensor, "segments points"]:
    """Return what `sample_labels` does; `padded` is the id map with a border of zeros."""
    width = layers.shape[2]
    x = _pixel_position(points[..., 0].clamp(0, 1), width)
    y = _pixel_position(points[..., 1].clamp(0, 1), layers.shape[1])
    left, top = x.floor(), y.floor()
    upper_left = torch.add(left + 1, top + 1, alpha=width + 2).long()
    x, y = x - left, y - top
    wanted = numbers[:, None].to(layers.dtype)

    def corner(offset: int) -> Float[Tensor, "segments points"]:
        where = upper_left + offset
        hits = padded[0].take(where) == wanted
        for layer in padded[1:]:
            hits |= layer.take(where) == wanted
        return hits.float()

    upper = torch.lerp(corner(0), corner(1), x)
    lower = torch.lerp(corner(width + 2), corner(width + 3), x)
    return torch.lerp(upper, lower, y)


def uncertain_points(
    maps: Float[Tensor, "maps height width"], candidates: Float[Tensor, "maps candidates 2"], count: int
) -> Float[Tensor, "maps {count} 2"]:
    """Return, for each map, the `count` candidates whose logits are nearest to 0, in no particular order.

    Source: PointRend (1912.08193), Sec. 3.1 and its training, used by Mask2Former, Sec. 3.3.
    """
    points = candidates.new_empty((len(maps), count, 2))
    at_once = _at_once(candidates)
    parts = (tensor.split(at_once) for tensor in (maps, candidates, points))
    for some_maps, some_candidates, out in zip(*parts, strict=True):
        certainty = sample_maps(some_maps, some_candidates).abs_()
        chosen = certainty.topk(count, dim=1, largest=False, sorted=False).indices
        torch.gather(some_candidates, 1, chosen[..., None].expand(-1, -1, 2), out=out)
    return points

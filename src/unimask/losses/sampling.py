"""The points at which masks are compared: random points, every cell of the mask or every target pixel."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int16, Int64
from torch import Tensor
from torch.nn import functional

from unimask.ops.points import (
    logits_at_shared_points,
    sample_all_labels,
    sample_labels,
    sample_maps,
    uncertain_points,
)
from unimask.ops.positions import cell_centers
from unimask.structures import Segments, Size, Uniform

LogitsAndLabels = tuple[Float[Tensor, "masks places"], Float[Tensor, "others places"]]
"""Mask logits, and labels at the same points."""


@runtime_checkable
class Sampling(Protocol):
    """Chooses the points at which masks are compared, and returns logits and labels there."""

    def everyone(
        self,
        embeddings: Float[Tensor, "queries channels"],
        features: Float[Tensor, "channels height width"],
        target: Segments,
        uniform: Uniform,
    ) -> LogitsAndLabels:
        """Return the logits of all queries of an image and the labels of all its targets, for the matcher.

        The number of random numbers drawn does not depend on the number of targets.
        """

    def draw(self, pairs: int, uniform: Uniform) -> tuple[Float[Tensor, "pairs _ 2"], ...]:
        """Return the random points that are needed for `pairs` matched pairs; empty if none are."""

    def places(self, cells: int, pixels: int) -> int:
        """Return the largest number of values computed per pair, given cells per mask, pixels per target."""

    def pairs(
        self,
        maps: Float[Tensor, "pairs height width"],
        layers: Int16[Tensor, "layers target_height target_width"],
        numbers: Int64[Tensor, " pairs"],
        drawn: tuple[Float[Tensor, "pairs _ 2"], ...],
    ) -> LogitsAndLabels:
        """Return the logits and labels of matched pairs, for the losses; only logits have gradients.

        `maps` are the mask logits of the queries, `numbers` the ids of their targets in the id map `layers`,
        `drawn` the points that `draw` returned.
        """


@dataclass(frozen=True, kw_only=True)
class RandomPoints:
    """Random points: uniform for matching; for the losses mostly the most uncertain of many candidates.

    Source: Mask2Former (2112.01527), Sec. 3.3 (uniform sampling for the matcher, importance sampling for the
    losses), after PointRend (1912.08193), Sec. 3.1.
    """

    points: int
    candidates: int  # uniform points per pair from which the uncertain ones are chosen
    uncertain: int  # how many of the points are uncertain ones; the others are uniform

    def everyone(
        self,
        embeddings: Float[Tensor, "queries channels"],
        features: Float[Tensor, "channels height width"],
        target: Segments,
        uniform: Uniform,
    ) -> LogitsAndLabels:
        """Return logits and labels at `points` uniform points, shared by all queries and targets."""
        return at_shared_points(embeddings, features, target, uniform((1, self.points, 2))[0])

    def draw(self, pairs: int, uniform: Uniform) -> tuple[Float[Tensor, "pairs _ 2"], ...]:
        """Return the candidates, then the uniform points if there are any."""
        candidates = uniform((pairs, self.candidates, 2))
        if self.uncertain == self.points:
            return (candidates,)
        return candidates, uniform((pairs, self.points - self.uncertain, 2))

    def places(self, cells: int, pixels: int) -> int:
        """Return the largest of the numbers of cells, candidates and points."""
        return max(cells, self.candidates, self.points)

    def choose(
        self, maps: Float[Tensor, "pairs height width"], drawn: tuple[Float[Tensor, "pairs _ 2"], ...]
    ) -> Float[Tensor, "pairs points 2"]:
        """Return the candidates with the logits nearest to 0, then the uniform points."""
        candidates, *uniform_points = drawn
        return torch.cat([uncertain_points(maps, candidates, self.uncertain), *uniform_points], dim=1)

    def pairs(
        self,
        maps: Float[Tensor, "pairs height width"],
        layers: Int16[Tensor, "layers target_height target_width"],
        numbers: Int64[Tensor, " pairs"],
        drawn: tuple[Float[Tensor, "pairs _ 2"], ...],
    ) -> LogitsAndLabels:
        """Return the logits and labels of each pair at its own points."""
        with torch.no_grad():
            points = self.choose(maps, drawn)
        return at_own_points(maps, layers, numbers, points)


@dataclass(frozen=True, kw_only=True)
class EveryCell:
    """The centre of every cell of the mask, for matching and losses; draws no random numbers.

    Source: the ablation of Mask2Former (2112.01527), Table 5. There masks are compared at the size of the
    targets; here at stride 4, the resolution of the logits, because values between cells are interpolated.
    """

    def everyone(
        self,
        embeddings: Float[Tensor, "queries channels"],
        features: Float[Tensor, "channels height width"],
        target: Segments,
        uniform: Uniform,
    ) -> LogitsAndLabels:
        """Return logits and labels at the centres of all cells."""
        height, width = features.shape[1:]
        return at_shared_points(
            embeddings, features, target, cell_centers(height, width, device=features.device)
        )

    def draw(self, pairs: int, uniform: Uniform) -> tuple[Float[Tensor, "pairs _ 2"], ...]:
        """Return an empty tuple: no random points are needed."""
        return ()

    def places(self, cells: int, pixels: int) -> int:
        """Return the number of cells."""
        return cells

    def choose(
        self, maps: Float[Tensor, "pairs height width"], drawn: tuple[Float[Tensor, "pairs _ 2"], ...]
    ) -> Float[Tensor, "pairs points 2"]:
        """Return the centres of all cells, for each pair."""
        pairs, height, width = maps.shape
        return cell_centers(height, width, device=maps.device).expand(pairs, -1, -1)

    def pairs(
        self,
        maps: Float[Tensor, "pairs height width"],
        layers: Int16[Tensor, "layers target_height target_width"],
        numbers: Int64[Tensor, " pairs"],
        drawn: tuple[Float[Tensor, "pairs _ 2"], ...],
    ) -> LogitsAndLabels:
        """Return the logits and labels of each pair at the centres of all cells."""
        return at_own_points(maps, layers, numbers, self.choose(maps, drawn))


@dataclass(frozen=True, kw_only=True)
class EveryPixel:
    """Every pixel of the target for the losses, every cell of the mask for matching; no random numbers.

    For the losses, masks are resized to the targets' size (bilinear). For matching, targets are resized to
    the masks' size (nearest): each cell takes the pixel at its upper left.

    Source: MaskFormer (2107.06278), Sec. 3.2 and 4.1; the resizing is only in its code.
    """

    def everyone(
        self,
        embeddings: Float[Tensor, "queries channels"],
        features: Float[Tensor, "channels height width"],
        target: Segments,
        uniform: Uniform,
    ) -> LogitsAndLabels:
        """Return the logits of all cells, with the labels of the nearest pixels."""
        cells = _nearest(target.layers, (features.shape[1], features.shape[2])).flatten(1)
        numbers = torch.arange(1, len(target) + 1, device=cells.device)
        return embeddings @ features.flatten(1), _belongs(cells, numbers)

    def draw(self, pairs: int, uniform: Uniform) -> tuple[Float[Tensor, "pairs _ 2"], ...]:
        """Return an empty tuple: no random points are needed."""
        return ()

    def places(self, cells: int, pixels: int) -> int:
        """Return the larger of the numbers of cells and pixels."""
        return max(cells, pixels)

    def pairs(
        self,
        maps: Float[Tensor, "pairs height width"],
        layers: Int16[Tensor, "layers target_height target_width"],
        numbers: Int64[Tensor, " pairs"],
        drawn: tuple[Float[Tensor, "pairs _ 2"], ...],
    ) -> LogitsAndLabels:
        """Return the logits, resized, and the labels of each pair at all pixels."""
        resized = functional.interpolate(
            maps[:, None], layers.shape[1:], mode="bilinear", align_corners=False
        )
        return resized[:, 0].flatten(1), _belongs(layers.flatten(1), numbers)


def at_shared_points(
    embeddings: Float[Tensor, "queries channels"],
    features: Float[Tensor, "channels height width"],
    target: Segments,
    points: Float[Tensor, "points 2"],
) -> LogitsAndLabels:
    """Return the logits of all queries and the labels of all targets of an image at the same points."""
    labels = sample_all_labels(target.layers, len(target), points)
    return logits_at_shared_points(embeddings, features, points), labels


def at_own_points(
    maps: Float[Tensor, "pairs height width"],
    layers: Int16[Tensor, "layers target_height target_width"],
    numbers: Int64[Tensor, " pairs"],
    points: Float[Tensor, "pairs points 2"],
) -> LogitsAndLabels:
    """Return the logits and labels of each pair at its own points."""
    with torch.no_grad():
        labels = sample_labels(layers, numbers, points)
    return sample_maps(maps, points), labels


def _nearest(
    layers: Int16[Tensor, "layers height width"], size: Size
) -> Int16[Tensor, "layers new_height new_width"]:
    """Resize an id map by nearest neighbour, with the same choice of pixels as `functional.interpolate`."""
    rows, columns = (
        (torch.arange(new, device=layers.device) * (old / new)).floor().long().clamp(max=old - 1)
        for new, old in zip(size, layers.shape[1:], strict=True)
    )
    return layers[:, rows[:, None], columns]


def _belongs(
    layers: Int16[Tensor, "layers places"], numbers: Int64[Tensor, " segments"]
) -> Float[Tensor, "segments places"]:
    """Return 1 where a point belongs to the segment, otherwise 0."""
    hits = layers[0] == numbers[:, None]
    for layer in layers[1:]:
        hits |= layer == numbers[:, None]
    return hits.float()

"""Masks beside the masks of the targets, at points."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unimask.losses.comparison import PairTerm, weighted_cost
from unimask.losses.sampling import Sampling
from unimask.ops.points import logits_at_shared_points, sample_all_labels, sample_labels, sample_maps
from unimask.structures import MaskPrediction, Matches, Segments, Uniform

VALUES_AT_ONCE = 2**22
"""Largest number of mask logits made at once for the losses; pairs are taken in groups that stay below."""


@dataclass(frozen=True, kw_only=True)
class MaskComparison:
    """Compares masks at points: costs at points that all queries and targets of a picture share, losses at
    points of each pair's own.

    Masks stay factorised and targets stay id maps: logits of matched queries are made a few pairs at a time,
    and only their values at the points are kept.

    Source: Mask2Former (2112.01527), Sec. 3.3 and 4.1.
    """

    terms: Sequence[PairTerm]
    sampling: Sampling

    def __call__(
        self, prediction: MaskPrediction, targets: tuple[Segments, ...], uniform: Uniform
    ) -> "ComparedMasks":
        """All predicted masks beside those of the targets, which lie on the canvas."""
        features = prediction.mask_features.float().contiguous(memory_format=torch.channels_last)
        return ComparedMasks(
            terms=self.terms,
            sampling=self.sampling,
            embeddings=prediction.mask_embeddings.float(),
            features=features.unbind(),
            targets=targets,
            uniform=uniform,
        )


@dataclass(frozen=True, kw_only=True)
class ComparedMasks:
    """The masks of one batch."""

    terms: Sequence[PairTerm]
    sampling: Sampling
    embeddings: Float[Tensor, "predictions batch queries channels"]
    features: Sequence[Float[Tensor, "channels height width"]]
    targets: tuple[Segments, ...]
    uniform: Uniform

    @torch.no_grad()
    def costs(self, index: int) -> list[Float[Tensor, "queries _targets"]]:
        """The weighted cost of every query for every target, of each picture.

        Points are drawn once per picture, also for one without targets, as in the original code.
        """
        pictures = zip(self.embeddings[index], self.features, self.targets, strict=True)
        return [self._costs(*picture) for picture in pictures]

    def _costs(
        self,
        embeddings: Float[Tensor, "queries channels"],
        features: Float[Tensor, "channels height width"],
        target: Segments,
    ) -> Float[Tensor, "queries _targets"]:
        height, width = features.shape[1:]
        points = self.sampling.shared((height, width), features.device, self.uniform)
        if len(target) == 0:
            return embeddings.new_zeros((embeddings.shape[0], 0))
        labels = sample_all_labels(target.layers, len(target), points)
        return weighted_cost(self.terms, logits_at_shared_points(embeddings, features, points), labels)

    def losses(self, index: int, matches: Matches, count: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """Each term over the matched pairs; 0, with a gradient of 0, where there is none."""
        logits, labels = self._at_points(self.embeddings[index], matches)
        return {term.name: term.loss(logits, labels, count) for term in self.terms}

    def _at_points(
        self, embeddings: Float[Tensor, "batch queries channels"], matches: Matches
    ) -> tuple[Float[Tensor, "pairs points"], Float[Tensor, "pairs points"]]:
        """Logits and labels of all matched pairs of a prediction, each pair at its own points."""
        drawn = self.sampling.draw(len(matches.image), self.uniform)
        values_of_pair = max(self.features[0][0].numel(), *(part.shape[1] for part in drawn), 1)
        pairs_of_images = [min(embeddings.shape[1], len(target)) for target in self.targets]
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        for image, group in _groups(pairs_of_images, max(1, VALUES_AT_ONCE // values_of_pair)):
            pair_logits, pair_labels = self._group_at_points(
                embeddings[image][matches.query[group]],
                self.features[image],
                self.targets[image],
                matches.target[group] + 1,
                tuple(part[group] for part in drawn),
            )
            logits.append(pair_logits)
            labels.append(pair_labels)
        return torch.cat(logits), torch.cat(labels)

    def _group_at_points(
        self,
        embeddings: Float[Tensor, "pairs channels"],
        features: Float[Tensor, "channels height width"],
        target: Segments,
        numbers: Int64[Tensor, " pairs"],
        drawn: tuple[Float[Tensor, "pairs _ 2"], ...],
    ) -> tuple[Float[Tensor, "pairs points"], Float[Tensor, "pairs points"]]:
        """Logits and labels of some pairs of one picture; the gradient flows through the logits only."""
        maps = (embeddings @ features.flatten(1)).unflatten(1, features.shape[1:])
        with torch.no_grad():
            points = self.sampling.choose(maps, drawn)
            labels = sample_labels(target.layers, numbers, points)
        return sample_maps(maps, points), labels


def _groups(pairs_of_images: Sequence[int], at_once: int) -> list[tuple[int, slice]]:
    """All pairs in their order, as (image, range of pairs) with at most `at_once` pairs of one image.

    Without any pair there is one empty group, so that the losses still depend on the prediction.
    """
    groups, start = [], 0
    for image, count in enumerate(pairs_of_images):
        stop = start + count
        groups += [(image, slice(first, min(first + at_once, stop))) for first in range(start, stop, at_once)]
        start = stop
    return groups or [(0, slice(0, 0))]

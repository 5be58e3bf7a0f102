"""Comparison of predicted masks with the masks of the targets, at sampled points."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from unimask.losses.comparison import PairTerm, weighted_cost
from unimask.losses.sampling import Sampling
from unimask.structures import MaskPrediction, Matches, Segments, Uniform

VALUES_AT_ONCE = 2**22
"""Largest number of mask logits computed at once for the losses; pairs are processed in groups below it."""


@dataclass(frozen=True, kw_only=True)
class MaskComparison:
    """Compares predicted masks with target masks at the points that `sampling` chooses.

    Costs use points shared by all queries and targets of an image, losses use separate points for each pair.
    Masks stay factorised and targets stay id maps: logits of matched queries are computed a few pairs at a
    time, and only their values at the points are kept.

    Source: Mask2Former (2112.01527), Sec. 3.3 and 4.1; MaskFormer (2107.06278), Sec. 3.2.
    """

    terms: Sequence[PairTerm]
    sampling: Sampling

    def __call__(
        self, prediction: MaskPrediction, targets: tuple[Segments, ...], uniform: Uniform
    ) -> "ComparedMasks":
        """Return the comparison with the targets, whose masks are on the canvas."""
        features = prediction.mask_features.float().unbind()
        return ComparedMasks(
            terms=self.terms,
            sampling=self.sampling,
            embeddings=prediction.mask_embeddings.float(),
            features=tuple(one.contiguous(memory_format=torch.channels_last).unbind() for one in features),
            targets=targets,
            uniform=uniform,
        )


@dataclass(frozen=True, kw_only=True)
class ComparedMasks:
    """The predicted masks, factorised, and the targets of one batch.

    `features[prediction][image]` are the mask features; one entry if all predictions share them.
    """

    terms: Sequence[PairTerm]
    sampling: Sampling
    embeddings: Float[Tensor, "predictions batch queries channels"]
    features: tuple[tuple[Float[Tensor, "channels height width"], ...], ...]
    targets: tuple[Segments, ...]
    uniform: Uniform

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The mask embeddings, then the mask features, in order."""
        return self.embeddings, *chain.from_iterable(self.features)

    def of(self, tensors: tuple[Tensor, ...]) -> "ComparedMasks":
        """Return this comparison with other tensors in place of `tensors`."""
        images = len(self.targets)
        rows = tuple(tensors[first : first + images] for first in range(1, len(tensors), images))
        return replace(self, embeddings=tensors[0], features=rows)

    def _features(self, index: int) -> tuple[Float[Tensor, "channels height width"], ...]:
        """Return the mask features of each image for one prediction."""
        return self.features[index % len(self.features)]

    @torch.no_grad()
    def costs(self, index: int) -> list[Float[Tensor, "queries _targets"]]:
        """Return the weighted cost of every query-target pair, one matrix per image.

        Points are drawn once per image, also for images without targets, as in the original code.
        """
        images = zip(self.embeddings[index], self._features(index), self.targets, strict=True)
        return [self._costs(*image) for image in images]

    def _costs(
        self,
        embeddings: Float[Tensor, "queries channels"],
        features: Float[Tensor, "channels height width"],
        target: Segments,
    ) -> Float[Tensor, "queries _targets"]:
        return weighted_cost(self.terms, *self.sampling.everyone(embeddings, features, target, self.uniform))

    def losses(self, index: int, matches: Matches, count: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """Return each term's loss over the matched pairs; 0, with a gradient of 0, if there are none."""
        logits, labels = self._at_points(self.embeddings[index], self._features(index), matches)
        return {term.name: term.loss(logits, labels, count) for term in self.terms}

    def _at_points(
        self,
        embeddings: Float[Tensor, "batch queries channels"],
        features_of_images: tuple[Float[Tensor, "channels height width"], ...],
        matches: Matches,
    ) -> tuple[Float[Tensor, "pairs points"], Float[Tensor, "pairs points"]]:
        """Return the logits and labels of all matched pairs of a prediction, at the points of each pair."""
        drawn = self.sampling.draw(len(matches.image), self.uniform)
        cells, pixels = features_of_images[0][0].numel(), self.targets[0].layers[0].numel()
        values_of_pair = self.sampling.places(cells, pixels)
        pairs_of_images = [min(embeddings.shape[1], len(target)) for target in self.targets]
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        for image, group in _groups(pairs_of_images, max(1, VALUES_AT_ONCE // values_of_pair)):
            features = features_of_images[image]
            maps = embeddings[image][matches.query[group]] @ features.flatten(1)
            pair_logits, pair_labels = self.sampling.pairs(
                maps.unflatten(1, features.shape[1:]),
                self.targets[image].layers,
                matches.target[group] + 1,
                tuple(part[group] for part in drawn),
            )
            logits.append(pair_logits)
            labels.append(pair_labels)
        return torch.cat(logits), torch.cat(labels)


def _groups(pairs_of_images: Sequence[int], at_once: int) -> list[tuple[int, slice]]:
    """Return groups (image, range of pairs) of at most `at_once` pairs of one image, in order.

    If there are no pairs, one empty group is returned, so that the losses still depend on the prediction.
    """
    groups, start = [], 0
    for image, count in enumerate(pairs_of_images):
        stop = start + count
        groups += [(image, slice(first, min(first + at_once, stop))) for first in range(start, stop, at_once)]
        start = stop
    return groups or [(0, slice(0, 0))]

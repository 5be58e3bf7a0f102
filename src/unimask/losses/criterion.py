"""The loss of a mask prediction: matching, then a list of terms, after every layer."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unimask.losses.matcher import Matcher
from unimask.losses.sampling import Sampling
from unimask.losses.terms import ClassTerm, PairTerm
from unimask.structures import Losses, MaskPrediction, Matches, Segments, Uniform

Average = Callable[[Tensor], Tensor]
"""Gives the mean of a number over all processes; the same on each of them."""

VALUES_AT_ONCE = 2**22
"""Largest number of mask logits made at once for the losses; pairs are taken in groups that stay below."""


class Criterion(nn.Module):
    """Measures a prediction against the targets; every supervised prediction is matched on its own.

    Masks stay factorised and targets stay id maps: logits of matched queries are made a few pairs at a time,
    and only their values where they are compared are kept. Everything is computed in float32, also under
    autocast.

    Source: Mask2Former (2112.01527), Sec. 3.2 (supervision after every layer), 3.3 and 4.1.
    """

    def __init__(
        self,
        class_term: ClassTerm,
        pair_terms: Sequence[PairTerm],
        sampling: Sampling,
        deep_supervision: bool,
        average: Average,
    ) -> None:
        super().__init__()
        self.matcher = Matcher(class_term, pair_terms, sampling)
        self.class_term = class_term
        self.pair_terms = tuple(pair_terms)
        self.sampling = sampling
        self.deep_supervision = deep_supervision
        self.average = average
        self.weights = {class_term.name: class_term.weight, **{term.name: term.weight for term in pair_terms}}

    def forward(self, prediction: MaskPrediction, targets: tuple[Segments, ...], uniform: Uniform) -> Losses:
        """The terms of each supervised prediction, in order of depth: only the last without deep supervision.

        Targets lie on the canvas, without crowd, labels below K. Mask terms are sums over matched pairs,
        divided by the number of all targets of the batch (its mean over processes, at least 1); they are 0,
        with a gradient of 0, where the batch has no target. Random numbers are drawn for the final prediction
        first, then for the others in order.
        """
        with torch.autocast(prediction.mask_features.device.type, enabled=False):
            class_logits = prediction.class_logits.float().unbind()
            embeddings = prediction.mask_embeddings.float().unbind()
            features = prediction.mask_features.float().contiguous(memory_format=torch.channels_last).unbind()
            count = sum(len(target) for target in targets)
            num_masks = self.average(torch.tensor(float(count), device=features[0].device)).clamp(min=1)
            last = len(class_logits) - 1
            order = [last, *range(last)] if self.deep_supervision else [last]
            losses = {
                index: self._losses(
                    class_logits[index], embeddings[index], features, targets, uniform, num_masks
                )
                for index in order
            }
        terms = {
            name: torch.stack([losses[index][name] for index in sorted(losses)]) for name in losses[last]
        }
        return Losses(terms=terms, weights=self.weights)

    def _losses(
        self,
        class_logits: Float[Tensor, "batch queries classes_and_none"],
        embeddings: Float[Tensor, "batch queries channels"],
        features: Sequence[Float[Tensor, "channels height width"]],
        targets: tuple[Segments, ...],
        uniform: Uniform,
        num_masks: Float[Tensor, ""],
    ) -> dict[str, Float[Tensor, ""]]:
        """Each term of one prediction."""
        matches = self.matcher(class_logits, embeddings, features, targets, uniform)
        labels_of_queries = self._labels_of_queries(class_logits, matches, targets)
        losses = {self.class_term.name: self.class_term.loss(class_logits, labels_of_queries)}
        logits, labels = self._at_points(embeddings, features, matches, targets, uniform)
        for term in self.pair_terms:
            losses[term.name] = term.loss(logits, labels, num_masks)
        return losses

    def _labels_of_queries(
        self,
        class_logits: Float[Tensor, "batch queries classes_and_none"],
        matches: Matches,
        targets: tuple[Segments, ...],
    ) -> Int64[Tensor, "batch queries"]:
        """The label that each query is to predict; no-object for those without a target."""
        labels = torch.full(class_logits.shape[:2], self.class_term.no_object, device=class_logits.device)
        first = torch.tensor([0, *(len(target) for target in targets)], device=labels.device).cumsum(0)
        all_labels = torch.cat([target.labels for target in targets])
        labels[matches.image, matches.query] = all_labels[first[matches.image] + matches.target]
        return labels

    def _at_points(
        self,
        embeddings: Float[Tensor, "batch queries channels"],
        features: Sequence[Float[Tensor, "channels height width"]],
        matches: Matches,
        targets: tuple[Segments, ...],
        uniform: Uniform,
    ) -> tuple[Float[Tensor, "pairs points"], Float[Tensor, "pairs points"]]:
        """Logits and labels of all matched pairs of a prediction, where they are compared."""
        drawn = self.sampling.draw(len(matches.image), uniform)
        values_of_pair = self.sampling.places(features[0][0].numel(), targets[0].layers[0].numel())
        pairs_of_images = [min(embeddings.shape[1], len(target)) for target in targets]
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        for image, group in _groups(pairs_of_images, max(1, VALUES_AT_ONCE // values_of_pair)):
            maps = (embeddings[image][matches.query[group]] @ features[image].flatten(1)).unflatten(
                1, features[image].shape[1:]
            )
            pair_logits, pair_labels = self.sampling.pairs(
                maps,
                targets[image].layers,
                matches.target[group] + 1,
                tuple(part[group] for part in drawn),
            )
            logits.append(pair_logits)
            labels.append(pair_labels)
        return torch.cat(logits), torch.cat(labels)


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

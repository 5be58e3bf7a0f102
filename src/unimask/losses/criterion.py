"""The criterion of models with queries: matching, then the terms of the loss, for every decoder layer."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unimask.losses.at_once import differentiated_at_once
from unimask.losses.comparison import Compared, Comparison, PredictionOfModel, Target, TargetOfModel
from unimask.losses.matcher import Matcher
from unimask.losses.terms import ClassTerm
from unimask.structures import Losses, Matches, Uniform

Average = Callable[[Tensor], Tensor]
"""Returns the mean of a number over all processes, the same value on each."""


class Criterion(nn.Module, Generic[PredictionOfModel, TargetOfModel]):
    """Computes the loss of all supervised predictions; each prediction is matched separately.

    The criterion does not depend on masks or boxes: `comparison` compares either with the targets. Everything
    is computed in float32, also under autocast.

    Source: DETR (2005.12872), Sec. 3.1; Mask2Former (2112.01527), Sec. 3.2 (supervision after every layer),
    3.3 and 4.1.
    """

    def __init__(
        self,
        class_term: ClassTerm,
        comparison: Comparison[PredictionOfModel, TargetOfModel],
        deep_supervision: bool,
        average: Average,
    ) -> None:
        super().__init__()
        self.matcher = Matcher(class_term)
        self.class_term = class_term
        self.comparison = comparison
        self.deep_supervision = deep_supervision
        self.average = average
        self.weights = {
            class_term.name: class_term.weight,
            **{term.name: term.weight for term in comparison.terms},
        }

    def forward(
        self, prediction: PredictionOfModel, targets: tuple[TargetOfModel, ...], uniform: Uniform
    ) -> Losses:
        """Return the terms of each supervised prediction, by depth; only the last without deep supervision.

        Targets contain no crowd, their labels are below K, and segments are on the canvas. Mask and box terms
        are sums over matched pairs, divided by the number of targets in the batch (its mean over processes,
        at least 1); they are 0, with a gradient of 0, if the batch has no targets. Random numbers are drawn
        for the final prediction first, then for the others in order. Gradients are already computed here
        (`losses/at_once.py`), so only the weighted total of the losses can be differentiated, and only once.
        """
        with torch.autocast(prediction.class_logits.device.type, enabled=False):
            class_logits = prediction.class_logits.float()
            compared = self.comparison(prediction, targets, uniform)
            number = torch.tensor(float(sum(len(target) for target in targets)))
            count = self.average(number.to(class_logits.device)).clamp(min=1)
            last = len(class_logits) - 1
            order = [last, *range(last)] if self.deep_supervision else [last]

            def rows(tensors: tuple[Tensor, ...]) -> Iterator[Tensor]:
                logits, others = tensors[0].unbind(), compared.of(tensors[1:])
                for index in order:
                    losses = self._losses(logits[index], targets, others, index, count)
                    yield torch.stack([losses[name] for name in self.weights])

            weights = class_logits.new_tensor(list(self.weights.values()))
            values = differentiated_at_once(rows, (class_logits, *compared.tensors), weights)
        in_order = values.roll(-1, 0) if self.deep_supervision else values
        terms = dict(zip(self.weights, in_order.unbind(1), strict=True))
        return Losses(terms=terms, weights=self.weights)

    def _losses(
        self,
        class_logits: Float[Tensor, "batch queries classes_and_none"],
        targets: Sequence[Target],
        compared: Compared,
        index: int,
        count: Float[Tensor, ""],
    ) -> dict[str, Float[Tensor, ""]]:
        """Return each term of one prediction."""
        matches = self.matcher(class_logits, targets, compared.costs(index))
        labels = self._labels_of_queries(class_logits, matches, targets)
        class_loss = self.class_term.loss(class_logits, labels)
        return {self.class_term.name: class_loss, **compared.losses(index, matches, count)}

    def _labels_of_queries(
        self,
        class_logits: Float[Tensor, "batch queries classes_and_none"],
        matches: Matches,
        targets: Sequence[Target],
    ) -> Int64[Tensor, "batch queries"]:
        """Return the label that each query should predict; no-object for unmatched queries."""
        labels = torch.full(class_logits.shape[:2], self.class_term.no_object, device=class_logits.device)
        first = torch.tensor([0, *(len(target) for target in targets)], device=labels.device).cumsum(0)
        all_labels = torch.cat([target.labels for target in targets])
        labels[matches.image, matches.query] = all_labels[first[matches.image] + matches.target]
        return labels

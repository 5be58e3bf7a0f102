"""Which query is to predict which target: the assignment of least cost."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unimask.losses.sampling import Sampling
from unimask.losses.terms import ClassTerm, PairTerm
from unimask.ops.assignment import assign
from unimask.structures import Matches, Segments, Uniform


class Matcher(nn.Module):
    """Matches queries and targets of each picture one to one, for one prediction.

    The cost of a pair is the weighted sum of the costs of all terms. Masks are compared at places that all
    queries and targets of the picture share.

    Source: Mask2Former (2112.01527), Sec. 3.3 and 4.1; DETR (2005.12872), Sec. 3.1.
    """

    def __init__(self, class_term: ClassTerm, pair_terms: Sequence[PairTerm], sampling: Sampling) -> None:
        super().__init__()
        self.class_term = class_term
        self.pair_terms = tuple(pair_terms)
        self.sampling = sampling

    @torch.no_grad()
    def costs(
        self,
        class_logits: Float[Tensor, "batch queries classes_and_none"],
        mask_embeddings: Float[Tensor, "batch queries channels"],
        mask_features: Sequence[Float[Tensor, "channels height width"]],
        targets: tuple[Segments, ...],
        uniform: Uniform,
    ) -> list[Float[Tensor, "queries _"]]:
        """The cost of every query for every target, of each picture.

        Points are drawn once per picture, also for one without targets, as in the original code.
        """
        pictures = zip(class_logits, mask_embeddings, mask_features, targets, strict=True)
        return [self._costs(*picture, uniform) for picture in pictures]

    def _costs(
        self,
        class_logits: Float[Tensor, "queries classes_and_none"],
        embeddings: Float[Tensor, "queries channels"],
        features: Float[Tensor, "channels height width"],
        target: Segments,
        uniform: Uniform,
    ) -> Float[Tensor, "queries _"]:
        logits, labels = self.sampling.everyone(embeddings, features, target, uniform)
        cost = self.class_term.weight * self.class_term.cost(class_logits, target.labels)
        for term in self.pair_terms:
            cost = cost + term.weight * term.cost(logits, labels)
        return cost

    def forward(
        self,
        class_logits: Float[Tensor, "batch queries classes_and_none"],
        mask_embeddings: Float[Tensor, "batch queries channels"],
        mask_features: Sequence[Float[Tensor, "channels height width"]],
        targets: tuple[Segments, ...],
        uniform: Uniform,
    ) -> Matches:
        """The matched pairs of the batch: min(queries, targets) of each picture, in order of query."""
        costs = self.costs(class_logits, mask_embeddings, mask_features, targets, uniform)
        return match(costs)


def match(costs: Sequence[Float[Tensor, "queries _"]]) -> Matches:
    """The pairs of least total cost in each picture, on the device of the costs.

    One copy to the host and one back, however many pictures there are.
    """
    on_host = torch.cat([cost.flatten() for cost in costs]).cpu().split([cost.numel() for cost in costs])
    pairs = []
    for image, (values, cost) in enumerate(zip(on_host, costs, strict=True)):
        query, target = assign(values.view(cost.shape))
        pairs.append(torch.stack([torch.full_like(query, image), query, target]))
    image_query_target = torch.cat(pairs, dim=1).to(costs[0].device)
    return Matches(image=image_query_target[0], query=image_query_target[1], target=image_query_target[2])

"""Bipartite matching of queries and targets: the assignment with the least total cost."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unimask.losses.comparison import Target
from unimask.losses.terms import ClassTerm
from unimask.ops.assignment import assign
from unimask.structures import Matches


class Matcher(nn.Module):
    """Matches queries and targets of each image one to one, for one prediction.

    The cost of a pair is the weighted sum of the class cost and the costs of the mask or box terms.

    Source: DETR (2005.12872), Sec. 3.1; Mask2Former (2112.01527), Sec. 3.3 and 4.1.
    """

    def __init__(self, class_term: ClassTerm) -> None:
        super().__init__()
        self.class_term = class_term

    @torch.no_grad()
    def costs(
        self,
        class_logits: Float[Tensor, "batch queries classes_and_none"],
        targets: Sequence[Target],
        pair_costs: Sequence[Float[Tensor, "queries _targets"]],
    ) -> list[Float[Tensor, "queries _targets"]]:
        """Return the cost of every query-target pair: the weighted class cost plus `pair_costs`."""
        return [
            self.class_term.weight * self.class_term.cost(logits, target.labels) + pair_cost
            for logits, target, pair_cost in zip(class_logits, targets, pair_costs, strict=True)
        ]

    def forward(
        self,
        class_logits: Float[Tensor, "batch queries classes_and_none"],
        targets: Sequence[Target],
        pair_costs: Sequence[Float[Tensor, "queries _targets"]],
    ) -> Matches:
        """Return the matched pairs of the batch: min(queries, targets) per image, in order of query."""
        return match(self.costs(class_logits, targets, pair_costs))


def match(costs: Sequence[Float[Tensor, "queries _"]]) -> Matches:
    """Return the assignment with the least total cost in each image, on the device of the costs.

    All costs are copied to the host together and all pairs back together, whatever the number of images.
    """
    on_host = torch.cat([cost.flatten() for cost in costs]).cpu().split([cost.numel() for cost in costs])
    pairs = []
    for image, (values, cost) in enumerate(zip(on_host, costs, strict=True)):
        query, target = assign(values.view(cost.shape))
        pairs.append(torch.stack([torch.full_like(query, image), query, target]))
    image_query_target = torch.cat(pairs, dim=1).to(costs[0].device)
    return Matches(image=image_query_target[0], query=image_query_target[1], target=image_query_target[2])

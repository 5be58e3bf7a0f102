"""The exponential moving average of a model's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def decay_at(update: int, decay: float) -> float:
    """The decay of update number `update` (counted from 0): a running mean at first, then `decay`.

    `min(decay, (1 + update) / (10 + update))`: without it the random initial weights would stay in the
    average for the first `1 / (1 - decay)` updates.
    """
    return min(decay, (1.0 + update) / (10.0 + update))


class MovingAverage(Generic[Model]):
    """A copy of a model whose parameters follow slowly: `average += (1 - decay) (model - average)`.

    Buffers (statistics of batch norms) and tensors that are not floating point are copied as they are.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Model, number: int) -> None:
        """Moves the average towards `model`; `number` counts the updates so far."""
        own: list[Tensor] = list(self.model.parameters())
        others: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(own, others, 1.0 - decay_at(number, self.decay))
        for mine, other in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(other)

"""The exponential moving average of a model's weights."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Parameters = tuple[Tensor, ...] | list[Tensor]


def decay_at(averaged: int, decay: float) -> float:
    """Return the decay of the average of `averaged` weights when the next ones are added.

    `min(decay, averaged / (averaged + 9))`: a running mean at first. Otherwise the random initial weights
    would stay in the average for the first `1 / (1 - decay)` updates.
    """
    return min(decay, averaged / (averaged + 9.0))


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """Return an average that starts with the weights of `model` and follows: `a += (1 - decay) (model - a)`.

    Call `update_parameters(model)` after each update. Buffers (statistics of batch norms) are copied.
    """

    @torch.no_grad()
    def move(own: Parameters, others: Parameters, averaged: Tensor | int) -> None:
        torch._foreach_lerp_(own, others, 1.0 - decay_at(int(averaged), decay))

    average = AveragedModel(model, multi_avg_fn=move).eval().requires_grad_(False)
    average.update_parameters(model)  # the initial weights count as averaged
    return average

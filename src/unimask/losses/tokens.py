"""The criterion of sequence models: cross-entropy of the tokens with label smoothing."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from unimask.losses.criterion import Average
from unimask.structures import Losses

ROWS_AT_ONCE = 128
"""Number of tokens whose logits over the whole vocabulary are in memory at a time."""


class TokenCriterion(nn.Module):
    """Cross-entropy with label smoothing, in which every token has the same weight, whatever its batch.

    The target distribution is 1 - `smoothing` times the label plus `smoothing` times the uniform distribution
    over the vocabulary. `average` returns the mean number of tokens per pass over all passes and processes of
    a step.

    Source: Attention Is All You Need, Sec. 5.4; Szegedy et al. (1512.00567), Sec. 7.
    """

    def __init__(self, smoothing: float, average: Average) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.average = average

    def forward(
        self,
        states: Float[Tensor, "tokens channels"],
        weight: Float[Tensor, "vocabulary channels"],
        bias: Float[Tensor, " vocabulary"] | None,
        labels: Int64[Tensor, " tokens"],
    ) -> Losses:
        """Return the terms `smoothed`, which is trained on, and `cross_entropy`, not smoothed, for display.

        Logits are `states @ weight.T + bias`. Both terms are sums over tokens, divided by the average number
        of tokens (at least 1), in nats.
        """
        count = self.average(torch.tensor(float(len(labels)), device=states.device)).clamp(min=1)
        with torch.autocast(states.device.type, enabled=False):
            if bias is None:
                bias = weight.new_zeros(len(weight))
            smoothed, plain = _SmoothedCrossEntropy.apply(
                states.float(), weight.float(), bias.float(), labels, self.smoothing
            )
        terms = {"smoothed": (smoothed / count)[None], "cross_entropy": (plain / count)[None]}
        return Losses(terms=terms, weights={"smoothed": 1.0, "cross_entropy": 0.0})


def smoothed_cross_entropy(
    logits: Float[Tensor, "tokens vocabulary"], labels: Int64[Tensor, " tokens"], smoothing: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the cross-entropy with and without label smoothing, summed over tokens, in nats."""
    logarithms = logits.logsumexp(dim=1)
    plain = (logarithms - logits.gather(1, labels[:, None])[:, 0]).sum()
    even = (logarithms - logits.mean(dim=1)).sum()
    return (1 - smoothing) * plain + smoothing * even, plain


class _SmoothedCrossEntropy(torch.autograd.Function):
    """`smoothed_cross_entropy` of `states @ weight.T + bias`, without holding all logits in memory.

    The gradient is computed in the forward pass, `ROWS_AT_ONCE` tokens at a time, so the logits of some
    tokens are freed before the next are computed. The second result has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        wanted = any(ctx.needs_input_grad[:3])
        gradients = tuple(torch.zeros_like(one) for one in (states, weight, bias)) if wanted else ()
        smoothed, plain = states.new_zeros(()), states.new_zeros(())
        for first in range(0, len(labels), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            logits = functional.linear(states[rows], weight, bias)
            parts = smoothed_cross_entropy(logits, labels[rows], smoothing)
            smoothed, plain = smoothed + parts[0], plain + parts[1]
            if wanted:
                of_logits = logits.softmax(dim=1).sub_(smoothing / len(weight))
                of_logits[torch.arange(len(logits), device=logits.device), labels[rows]] -= 1 - smoothing
                torch.mm(of_logits, weight, out=gradients[0][rows])
                gradients[1].addmm_(of_logits.t(), states[rows])
                if ctx.needs_input_grad[2]:
                    gradients[2].add_(of_logits.sum(dim=0))
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(plain)
        return smoothed, plain

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        of_states, of_weight, of_bias = (gradient * upstream[0] for gradient in ctx.saved_tensors)
        return of_states, of_weight, of_bias, None, None

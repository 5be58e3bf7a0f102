"""The loss of written tokens: cross-entropy with label smoothing, over all valid tokens alike."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from unimask.losses.criterion import Average
from unimask.structures import Losses

ROWS_AT_ONCE = 128
"""So many tokens have their logits over the whole vocabulary at one time."""


class TokenCriterion(nn.Module):
    """Label smoothing: a label is 1 - `smoothing` of itself and `smoothing` spread over the vocabulary.

    `average` gives the mean number of tokens per pass over all passes and processes of a step, so that each
    token weighs the same, whatever batch it is in.

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
        """`smoothed` is to be differentiated; `cross_entropy`, without smoothing, is for display.

        Logits are `states @ weight.T + bias`. Both are sums over tokens, divided by the average number of
        tokens (at least 1); natural logarithms.
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
    """With smoothing and without, summed over tokens."""
    logarithms = logits.logsumexp(dim=1)
    plain = (logarithms - logits.gather(1, labels[:, None])[:, 0]).sum()
    even = (logarithms - logits.mean(dim=1)).sum()
    return (1 - smoothing) * plain + smoothing * even, plain


class _SmoothedCrossEntropy(torch.autograd.Function):
    """`smoothed_cross_entropy` of `states @ weight.T + bias`, without ever having all logits.

    The gradient is known as soon as a few tokens' logits are, so it is made in the forward pass, and the
    logits are gone before the next tokens' are made. Nothing flows back through the second result.
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

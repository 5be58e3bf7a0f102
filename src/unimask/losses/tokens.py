"""The criterion of sequence models: cross-entropy of the tokens with label smoothing, and consistency."""

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
    a step. With `consistency` above 0, the model has seen each token twice with other dropout, and what
    differs between its two distributions is part of the loss.

    Source: Attention Is All You Need, Sec. 5.4; Szegedy et al. (1512.00567), Sec. 7; consistency: R-Drop
    (2106.14448), Eq. 4 and alpha, of which this is the half: the mean of the two cross-entropies, not their
    sum.
    """

    def __init__(self, smoothing: float, average: Average, consistency: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.average = average
        self.consistency = consistency

    @property
    def passes(self) -> int:
        """Return how often the model must see each token: 2 for consistency, else 1."""
        return 2 if self.consistency else 1

    def forward(
        self,
        states: Float[Tensor, "rows channels"],
        weight: Float[Tensor, "vocabulary channels"],
        bias: Float[Tensor, " vocabulary"] | None,
        labels: Int64[Tensor, " tokens"],
    ) -> Losses:
        """Return the term `smoothed`, which is trained on, and `cross_entropy`, not smoothed, for display.

        With consistency, the trained term is called `consistent`, and `divergence` is for display: the
        Kullback-Leibler divergence of the two distributions, the mean of both directions. Logits are
        `states @ weight.T + bias`. Terms are sums over tokens, divided by the average number of tokens (at
        least 1), in nats; `states` has a row for each token of the first pass, then for each of the second.
        """
        count = self.average(torch.tensor(float(len(labels)), device=states.device)).clamp(min=1)
        with torch.autocast(states.device.type, enabled=False):
            if bias is None:
                bias = weight.new_zeros(len(weight))
            by_pass = states.float().unflatten(0, (self.passes, len(labels)))
            trained, plain, divergence = _LossOfTokens.apply(
                by_pass, weight.float(), bias.float(), labels, self.smoothing, self.consistency
            )
        if not self.consistency:
            terms = {"smoothed": trained, "cross_entropy": plain}
        else:
            terms = {"consistent": trained, "cross_entropy": plain, "divergence": divergence}
        return Losses(
            terms={name: (value / count)[None] for name, value in terms.items()},
            weights={name: float(value is trained) for name, value in terms.items()},
        )


def smoothed_cross_entropy(
    logarithms: Float[Tensor, "rows vocabulary"], labels: Int64[Tensor, " rows"], smoothing: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the cross-entropy with and without label smoothing, summed over tokens, in nats.

    `logarithms` are those of the predicted probabilities.
    """
    plain = -logarithms.gather(1, labels[:, None]).sum()
    even = -logarithms.mean(dim=1).sum()
    return (1 - smoothing) * plain + smoothing * even, plain


def divergence_of_passes(
    logarithms: Float[Tensor, "2 tokens vocabulary"], probabilities: Float[Tensor, "2 tokens vocabulary"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "2 tokens vocabulary"]]:
    """Return the divergence of two passes, summed over tokens, in nats, and its gradient for the logits.

    The divergence is (KL(first, second) + KL(second, first)) / 2.
    """
    apart = logarithms[0] - logarithms[1]
    gradient = torch.empty_like(logarithms)
    divergence = apart.new_zeros(())
    for one, other in ((0, 1), (1, 0)):
        torch.mul(probabilities[one], apart, out=gradient[one])
        of_tokens = gradient[one].sum(dim=1, keepdim=True)
        divergence = divergence + of_tokens.sum() / 2
        gradient[one].addcmul_(probabilities[one], 1 - of_tokens).sub_(probabilities[other])
        apart.neg_()
    return divergence, gradient.div_(2)


class _LossOfTokens(torch.autograd.Function):
    """The loss of logits `states @ weight.T + bias`, without holding all logits in memory.

    It is `smoothed_cross_entropy`, the mean over the passes, plus half of `consistency` times
    `divergence_of_passes`. The gradient is computed in the forward pass, `ROWS_AT_ONCE` tokens at a time, so
    the logits of some tokens are freed before the next are computed. The second and the third result, the
    cross-entropy without smoothing and the divergence, have no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        smoothing: float,
        consistency: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = any(ctx.needs_input_grad[:3])
        gradients = tuple(torch.zeros_like(one) for one in (states, weight, bias)) if wanted else ()
        smoothed, plain, divergence = (states.new_zeros(()) for _ in range(3))
        passes = len(states)
        for first in range(0, len(labels), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            of_rows = states[:, rows].flatten(0, 1)
            logarithms = functional.linear(of_rows, weight, bias).log_softmax(dim=1)
            labels_of_rows = labels[rows].repeat(passes)
            parts = smoothed_cross_entropy(logarithms, labels_of_rows, smoothing)
            smoothed, plain = smoothed + parts[0] / passes, plain + parts[1] / passes
            probabilities = logarithms.exp()
            if consistency:
                apart, of_apart = divergence_of_passes(
                    *(one.unflatten(0, (passes, -1)) for one in (logarithms, probabilities))
                )
                divergence = divergence + apart
            if wanted:
                of_logits = probabilities.sub_(smoothing / len(weight))
                of_logits[torch.arange(len(of_logits), device=labels.device), labels_of_rows] -= 1 - smoothing
                if consistency:
                    of_logits.add_(of_apart.flatten(0, 1), alpha=passes * consistency / 2)
                gradients[0][:, rows] = torch.mm(of_logits, weight).unflatten(0, (passes, -1))
                gradients[1].addmm_(of_logits.t(), of_rows)
                if ctx.needs_input_grad[2]:
                    gradients[2].add_(of_logits.sum(dim=0))
        for gradient in gradients:
            gradient.div_(passes)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(plain, divergence)
        return smoothed + consistency / 2 * divergence, plain, divergence

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        of_states, of_weight, of_bias = (gradient * upstream[0] for gradient in ctx.saved_tensors)
        return of_states, of_weight, of_bias, None, None, None

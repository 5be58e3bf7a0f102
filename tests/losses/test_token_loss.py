import pytest
import torch
from torch import Tensor
from torch.nn import functional

from unimask.losses import tokens
from unimask.losses.tokens import TokenCriterion


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(17, 5, generator=generator, requires_grad=True)
    weight = torch.randn(13, 5, generator=generator, requires_grad=True)
    bias = torch.randn(13, generator=generator, requires_grad=True)
    return states, weight, bias, torch.randint(0, 13, (17,), generator=generator)


@pytest.mark.parametrize("rows", [3, 17, 128])
def test_loss_and_gradients_are_those_of_torch(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ROWS_AT_ONCE", rows)
    states, weight, bias, labels = inputs()
    losses = TokenCriterion(0.1, lambda count: count)(states, weight, bias, labels)
    logits = functional.linear(states, weight, bias)
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(losses.total, expected)
    plain = functional.cross_entropy(logits, labels)
    torch.testing.assert_close(losses.terms["cross_entropy"][0], plain)
    found = torch.autograd.grad(2 * losses.total, (states, weight, bias))
    for ours, theirs in zip(found, torch.autograd.grad(2 * expected, (states, weight, bias)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_every_token_weighs_the_same_in_every_batch() -> None:
    states, weight, _, labels = inputs()
    whole = TokenCriterion(0.1, lambda count: count)(states, weight, None, labels).total
    shared = TokenCriterion(0.1, lambda count: torch.tensor(17 / 2))
    parts = [shared(states[part], weight, None, labels[part]).total for part in (slice(0, 4), slice(4, 17))]
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_a_batch_without_tokens_has_no_loss() -> None:
    states, weight, bias, labels = inputs()
    losses = TokenCriterion(0.1, lambda count: count)(states[:0], weight, bias, labels[:0])
    assert float(losses.total.detach()) == 0


def test_consistency_is_that_of_r_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ROWS_AT_ONCE", 5)
    states, weight, bias, labels = inputs()
    both = torch.cat((states, states + 0.3 * torch.randn(17, 5, generator=torch.Generator().manual_seed(2))))
    losses = TokenCriterion(0.1, lambda count: count, 5.0)(both, weight, bias, labels)
    first, second = functional.linear(both, weight, bias).chunk(2)
    cross_entropies = [functional.cross_entropy(one, labels, label_smoothing=0.1) for one in (first, second)]
    logarithms = [one.log_softmax(dim=1) for one in (first, second)]
    divergences = [
        functional.kl_div(one, other, reduction="batchmean", log_target=True)
        for one, other in (logarithms, logarithms[::-1])
    ]
    expected = sum(cross_entropies) + 5.0 * sum(divergences) / 2  # Eq. 4
    torch.testing.assert_close(2 * losses.total, expected)
    torch.testing.assert_close(losses.terms["divergence"][0], sum(divergences) / 2)
    found = torch.autograd.grad(2 * losses.total, (states, weight, bias))
    for ours, theirs in zip(found, torch.autograd.grad(expected, (states, weight, bias)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_passes_that_agree_cost_nothing_more() -> None:
    states, weight, bias, labels = inputs()
    once = TokenCriterion(0.1, lambda count: count)(states, weight, bias, labels)
    twice = TokenCriterion(0.1, lambda count: count, 5.0)(states.repeat(2, 1), weight, bias, labels)
    torch.testing.assert_close(twice.total, once.total)
    assert abs(float(twice.terms["divergence"][0])) < 1e-6

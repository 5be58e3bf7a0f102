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

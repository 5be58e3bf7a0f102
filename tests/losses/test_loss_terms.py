import math

import pytest
import torch
from torch.nn import functional

from unimask.losses.terms import ClassTerm, DiceTerm, FocalTerm, MaskTerm


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_class_cost_is_minus_the_probability() -> None:
    term = ClassTerm(num_classes=3, no_object_weight=0.1, weight=2.0)
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]]))
    cost = term.cost(logits, torch.tensor([2, 0, 0]))
    torch.testing.assert_close(cost, -torch.tensor([[0.3, 0.1, 0.1], [0.1, 0.7, 0.7]]))


def test_class_loss_is_a_weighted_mean() -> None:
    term = ClassTerm(num_classes=2, no_object_weight=0.25, weight=2.0)
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]]))
    loss = term.loss(logits, torch.tensor([[0, term.no_object]]))
    assert math.isclose(float(loss), (-math.log(0.5) - 0.25 * math.log(0.5)) / 1.25, rel_tol=1e-6)


def test_class_weights_are_no_part_of_a_checkpoint() -> None:
    assert ClassTerm(num_classes=3, no_object_weight=0.1, weight=2.0).state_dict() == {}


def test_mask_loss_is_a_mean_over_points_and_a_sum_over_pairs() -> None:
    logits, labels = torch.randn(3, 17), torch.rand(3, 17)
    loss = MaskTerm(weight=5.0).loss(logits, labels, torch.tensor(7.0))
    per_pair = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    torch.testing.assert_close(loss, per_pair.sum() / 7)


def test_the_focal_loss_counts_little_what_is_right_already() -> None:
    logits, labels = torch.tensor([[2.0, -3.0, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
    right = torch.tensor([[2.0, 3.0, -0.5]]).sigmoid()  # the probability of the true answer
    shares = torch.tensor([[0.25, 0.75, 0.75]])
    expected = (-shares * (1 - right) ** 2 * right.log()).mean()
    loss = FocalTerm(weight=20.0).loss(logits, labels, torch.tensor(1.0))
    torch.testing.assert_close(loss, expected)
    plain = FocalTerm(weight=20.0, alpha=0.5, gamma=0.0).loss(logits, labels, torch.tensor(1.0))
    torch.testing.assert_close(2 * plain, MaskTerm(weight=5.0).loss(logits, labels, torch.tensor(1.0)))


def test_dice_loss_adds_one() -> None:
    logits = torch.full((1, 4), -1e3)
    assert float(DiceTerm(weight=5.0).loss(logits, torch.zeros(1, 4), torch.tensor(1.0))) == 0.0
    loss = DiceTerm(weight=5.0).loss(logits, torch.ones(1, 4), torch.tensor(2.0))
    assert math.isclose(float(loss), (1 - 1 / 5) / 2, rel_tol=1e-6)


def test_the_cost_of_a_pair_is_its_loss() -> None:
    logits, fractions = torch.randn(3, 17), torch.rand(3, 17)
    for term, labels in (
        (MaskTerm(weight=1.0), fractions),
        (FocalTerm(weight=1.0), fractions.round()),  # of fractions they differ, as in the original
        (DiceTerm(weight=1.0), fractions),
    ):
        costs = term.cost(logits, labels).diagonal()
        for index in range(3):
            pair = slice(index, index + 1)
            torch.testing.assert_close(costs[index], term.loss(logits[pair], labels[pair], torch.tensor(1.0)))


def test_no_pairs_lose_nothing() -> None:
    logits = torch.zeros(0, 17, requires_grad=True)
    for term in (MaskTerm(weight=1.0), FocalTerm(weight=1.0), DiceTerm(weight=1.0)):
        loss = term.loss(logits, torch.zeros(0, 17), torch.tensor(1.0))
        assert float(loss.detach()) == 0.0
        assert loss.requires_grad

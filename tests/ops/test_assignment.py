from itertools import permutations

import pytest
import torch
from torch import Tensor

from unimask.ops.assignment import assign

NAN, INF = float("nan"), float("inf")


def least_total(cost: Tensor) -> float:
    """By trying everything."""
    wide = cost if cost.shape[0] <= cost.shape[1] else cost.T
    rows, columns = wide.shape
    return min(sum(float(wide[r, c]) for r, c in enumerate(p)) for p in permutations(range(columns), rows))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (7, 1), (1, 7)])
def test_the_total_cost_is_the_least(shape: tuple[int, int]) -> None:
    cost = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    query, target = assign(cost)
    assert len(query) == len(target) == min(shape)
    assert query.dtype == target.dtype == torch.int64
    assert query.tolist() == sorted(set(query.tolist()))
    assert len(set(target.tolist())) == len(target)
    assert float(cost[query, target].double().sum()) == pytest.approx(least_total(cost.double()))


def test_nothing_to_assign() -> None:
    for shape in [(5, 0), (0, 5), (0, 0)]:
        query, target = assign(torch.zeros(shape))
        assert len(query) == len(target) == 0


def test_half_precision_and_gradients_are_welcome() -> None:
    cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    assert assign(cost)[1].tolist() == [0, 1]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_entries_that_are_not_finite_are_the_last_choice(bad: float) -> None:
    cost = torch.tensor([[bad, 100.0, 7.0], [-50.0, 3.0, bad], [bad, -100.0, 900.0]])
    query, target = assign(cost)
    assert torch.isfinite(cost[query, target]).all()
    assert target.tolist() == [2, 0, 1]


def test_a_query_of_nothing_but_nan_is_left_out() -> None:
    cost = torch.tensor([[NAN, NAN], [3.0, 1.0], [0.0, 2.0]])
    query, target = assign(cost)
    assert query.tolist() == [1, 2]
    assert target.tolist() == [1, 0]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_costs_that_are_all_bad_still_give_a_matching(bad: float) -> None:
    query, target = assign(torch.full((5, 3), bad))
    assert len(query) == 3
    assert sorted(target.tolist()) == [0, 1, 2]


def test_the_largest_floats_do_not_overflow() -> None:
    cost = torch.full((3, 3), torch.finfo(torch.float32).max)
    cost[0, 0] = torch.finfo(torch.float32).min
    cost[1, 1] = NAN
    query, target = assign(cost)
    assert (query[target == 0]).tolist() == [0]
    assert torch.isfinite(cost[query, target]).all()

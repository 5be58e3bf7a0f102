"""The optimal one-to-one assignment of queries to targets."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign(
    cost: Float[Tensor, "queries targets"],
) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
    """Return the pairs (query, target) of least total cost; min(queries, targets) pairs, in order of query.

    Both are on the CPU. With more targets than queries, some targets stay without a query. An entry that is
    not finite counts as worse than any that is: it is taken only where nothing else is left, so a diverged
    prediction still gives a matching (and its loss then says what happened).

    Source: DETR (2005.12872), Sec. 3.1, Eq. 1; the rule for entries that are not finite is ours.
    """
    values = cost.detach().to(device="cpu", dtype=torch.float64).numpy()
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, _worse_than_all(values[finite], min(values.shape)))
    query, target = linear_sum_assignment(values)
    return torch.from_numpy(query.astype(np.int64)), torch.from_numpy(target.astype(np.int64))


def _worse_than_all(finite: np.ndarray, pairs: int) -> float:
    """Return a cost that one pair with it outweighs any choice among the finite ones."""
    if finite.size == 0:
        return 0.0
    lowest, highest = float(finite.min()), float(finite.max())
    return highest + (highest - lowest + 1.0) * (pairs + 1)

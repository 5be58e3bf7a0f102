"""The optimal one-to-one assignment of queries to targets."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign(
    cost: Float[Tensor, "queries targets"],
) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
    """Return the min(queries, targets) pairs (query, target) of least total cost, sorted by query.

    Both index tensors are on the CPU. With more targets than queries, some targets are not matched. A cost
    that is not finite counts as higher than every finite one and is chosen only where nothing else is left.
    So a diverged prediction is still matched, and its loss shows that it diverged.

    Source: DETR (2005.12872), Sec. 3.1, Eq. 1; the rule for costs that are not finite is ours.
    """
    values = cost.detach().to(device="cpu", dtype=torch.float64).numpy()
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, _worse_than_all(values[finite], min(values.shape)))
    query, target = linear_sum_assignment(values)
    return torch.from_numpy(query.astype(np.int64)), torch.from_numpy(target.astype(np.int64))


def _worse_than_all(finite: np.ndarray, pairs: int) -> float:
    """Return a cost so high that a single pair with it outweighs every choice of finite costs."""
    if finite.size == 0:
        return 0.0
    lowest, highest = float(finite.min()), float(finite.max())
    return highest + (highest - lowest + 1.0) * (pairs + 1)

"""Losses whose gradients are computed in the forward pass, row by row, so that no graph is stored."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Rows = Callable[[tuple[Tensor, ...]], Iterator[Float[Tensor, " terms"]]]
"""Yields the terms of one prediction after another, computed from the given tensors."""


def differentiated_at_once(
    rows: Rows, tensors: tuple[Tensor, ...], weights: Float[Tensor, " terms"]
) -> Float[Tensor, "rows terms"]:
    """Return the terms of all rows; the gradient of their weighted sum is computed here, row by row.

    The graph of a row is freed before the next row is computed. So memory does not grow with the number of
    rows, and hardly with the number of pairs that each row compares. The backward pass can only start from a
    multiple of the weighted sum of all values, and only once; otherwise it raises a RuntimeError.

    If no gradient is needed, the rows are only stacked.
    """
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    if not (torch.is_grad_enabled() and wanted):
        return torch.stack(list(rows(tensors)))
    leaves = tuple(tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors)
    inputs = [leaf for leaf in leaves if leaf.requires_grad]
    values = []
    for row in rows(leaves):
        torch.autograd.backward((row * weights).sum(), inputs=inputs)
        values.append(row.detach())
    gradients = tuple(leaf.grad for leaf in inputs)
    result: Tensor = _WithGradients.apply(torch.stack(values), weights, gradients, *wanted)
    return result


class _WithGradients(torch.autograd.Function):
    """Returns the values unchanged; the backward pass returns the gradients computed before."""

    @staticmethod
    def forward(
        context: Any, values: Tensor, weights: Tensor, gradients: tuple[Tensor | None, ...], *tensors: Tensor
    ) -> Tensor:
        context.save_for_backward(weights, *gradients)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(context: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        weights, *gradients = context.saved_tensors
        factor = _factor(upstream[0], weights)
        if factor != 1:
            gradients = [None if gradient is None else gradient * factor for gradient in gradients]
        return None, None, None, *gradients


def _factor(upstream: Float[Tensor, "rows terms"], weights: Float[Tensor, " terms"]) -> float:
    """Return the factor f for which every row of `upstream` is f * `weights`.

    Raises:
        RuntimeError: there is none, so something other than the weighted sum is differentiated.
    """
    scale = len(upstream) * weights.square().sum()
    mean = (upstream * weights).sum() / scale.clamp(min=torch.finfo(weights.dtype).tiny)
    farthest = (upstream - mean * weights).abs().max()
    factor, distance, largest = torch.stack([mean, farthest, upstream.abs().max()]).tolist()
    if distance > 1e-3 * largest:
        raise RuntimeError("only the weighted total of the losses can be differentiated, not one term")
    return float(factor)

"""Which version of an operation runs: the one place that chooses. All versions agree to rounding."""

import torch
from jaxtyping import Float
from torch import Tensor

from unimask.ops.deformable import deformable_sampling
from unimask.ops.deformable_bags import bag_sampling
from unimask.structures import Size


def fast_deformable_sampling(
    values: Float[Tensor, "batch cells heads channels"],
    sizes: tuple[Size, ...],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    """`ops.deformable.deformable_sampling` by the fastest version there is for the device.

    A compiler or an exporter sees the plain version: it makes its own plans.
    """
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        return bag_sampling(values, sizes, locations, weights)
    return deformable_sampling(values, sizes, locations, weights)


def softmax_over_few(logits: Float[Tensor, "*others few"]) -> Float[Tensor, "*others few"]:
    """The softmax over a last dimension of a few elements.

    On the CPU PyTorch's own takes each short row for itself; whole-tensor operations are six times as fast.
    """
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        return logits.softmax(dim=-1)
    exponentials = (logits - logits.amax(dim=-1, keepdim=True).detach()).exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True)

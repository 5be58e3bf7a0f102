"""Fused CPU operators: a convolution or a matrix product, a sum and an activation in one pass over memory.

oneDNN has a blocked memory layout of its own for weights (MKLDNN tensors in PyTorch). With weights that
`pack_linear` has brought into it once, products are about a tenth faster in float32 and a third in bfloat16.
Convolutions are not packed: they gain less, and become much slower at sizes other than the one packed for.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from unimask.ops.private import private_operator

Activation = Literal["none", "relu", "relu6", "gelu"]

Steps = tuple[list[int], list[int], list[int], int]
"""Stride, padding and dilation along rows and columns, and the number of groups of a convolution."""


def convolution(
    maps: Float[Tensor, "batch _in_channels _height _width"],
    weight: Float[Tensor, "channels _channels_of_group _rows _columns"],
    bias: Float[Tensor, " channels"] | None,
    steps: Steps,
    activation: Activation,
    added: Float[Tensor, "batch channels _rows_out _columns_out"] | None,
) -> Float[Tensor, "batch channels _rows_out _columns_out"]:
    """Return activation(convolution + added): the plain version of `fused_convolution`."""
    convolved = functional.conv2d(maps, weight, bias, *steps)
    return _activated(convolved if added is None else convolved + added, activation)


def linear(
    tokens: Float[Tensor, "*batch _in_channels"],
    weight: Float[Tensor, "channels _in_channels"],
    bias: Float[Tensor, " channels"] | None,
    activation: Activation,
) -> Float[Tensor, "*batch channels"]:
    """Return activation(tokens weight^T + bias): the plain version of `fused_linear`."""
    return _activated(functional.linear(tokens, weight, bias), activation)


def _activated(total: Tensor, activation: Activation) -> Tensor:
    match activation:
        case "relu":
            return total.relu()
        case "relu6":
            return functional.relu6(total)
        case "gelu":
            return functional.gelu(total)
        case "none":
            return total


_STEPS: dict[Activation, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "gelu": ("gelu", [], "none"),
}
"""Activation -> oneDNN's name of it, its parameters, and its algorithm."""


def fused_convolution(
    maps: Float[Tensor, "batch _in_channels _height _width"],
    weight: Float[Tensor, "channels _channels_of_group _rows _columns"],
    bias: Float[Tensor, " channels"] | None,
    steps: Steps,
    activation: Activation,
    added: Float[Tensor, "batch channels _rows_out _columns_out"] | None,
) -> Float[Tensor, "batch channels _rows_out _columns_out"]:
    """Return what `convolution` does, computed by oneDNN on the CPU; may write the result over `added`.

    Only for types that `ops.private.fuses` accepts, the same for all tensors. With `added` the activation
    must be "relu" or "none". The result has the memory format channels_last. Not differentiable.
    """
    maps = maps.contiguous(memory_format=torch.channels_last)
    stride, padding, dilation, groups = steps
    geometry = (padding, stride, dilation, groups)
    if added is None:
        return _operator("mkldnn::_convolution_pointwise")(maps, weight, bias, *geometry, *_STEPS[activation])
    added = added.contiguous(memory_format=torch.channels_last)
    unary = "relu" if activation == "relu" else None
    add = _operator("mkldnn::_convolution_pointwise_.binary")
    return add(added, maps, weight, bias, *geometry, "add", 1.0, unary, [], "")


def fused_linear(
    tokens: Float[Tensor, "*batch _in_channels"],
    weight: Float[Tensor, "channels _in_channels"],
    bias: Float[Tensor, " channels"] | None,
    activation: Activation,
) -> Float[Tensor, "*batch channels"]:
    """Return what `linear` does, computed by oneDNN on the CPU. Not differentiable.

    Only for types that `ops.private.fuses` accepts, the same for all tensors.
    """
    return _operator("mkldnn::_linear_pointwise")(tokens, weight, bias, *_STEPS[activation])


def pack_linear(weight: Float[Tensor, "channels in_channels"]) -> Tensor:
    """Return a weight for `fused_linear` in oneDNN's memory layout."""
    return _operator("mkldnn::_reorder_linear_weight")(weight.contiguous())


def _operator(name: str) -> Callable[..., Tensor]:
    operator = private_operator(name)
    assert operator is not None, "fused operators are called only where `ops.private.fuses` the type"
    return operator

"""A convolution or a matrix product, a sum and an activation in one step: nothing is written twice.

oneDNN multiplies by matrices in an order of its own: with those that `pack_linear` brings into it once, about
a tenth faster in float32 and a third in bfloat16. PyTorch calls them MKLDNN tensors. (Convolutions gain less,
and lose much where the order is not that of their size.)
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
    """activation(convolved + added). The plain version of `fused_convolution`."""
    convolved = functional.conv2d(maps, weight, bias, *steps)
    return _activated(convolved if added is None else convolved + added, activation)


def linear(
    tokens: Float[Tensor, "*batch _in_channels"],
    weight: Float[Tensor, "channels _in_channels"],
    bias: Float[Tensor, " channels"] | None,
    activation: Activation,
) -> Float[Tensor, "*batch channels"]:
    """activation(tokens weight^T + bias). The plain version of `fused_linear`."""
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
"""What oneDNN calls an activation, its numbers, and how it is computed."""


def fused_convolution(
    maps: Float[Tensor, "batch _in_channels _height _width"],
    weight: Float[Tensor, "channels _channels_of_group _rows _columns"],
    bias: Float[Tensor, " channels"] | None,
    steps: Steps,
    activation: Activation,
    added: Float[Tensor, "batch channels _rows_out _columns_out"] | None,
) -> Float[Tensor, "batch channels _rows_out _columns_out"]:
    """As `convolution`, by oneDNN on the CPU. The result is written over `added` if it is given.

    All tensors have the same type, and the result has the memory format channels_last. After a sum the
    activation is ReLU or none. Not differentiable. Only where `ops.private.fuses` the type.
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
    """As `linear`, by oneDNN on the CPU; all tensors have the same type. Not differentiable."""
    return _operator("mkldnn::_linear_pointwise")(tokens, weight, bias, *_STEPS[activation])


def pack_linear(weight: Float[Tensor, "channels in_channels"]) -> Tensor:
    """Return the weight of `fused_linear` in oneDNN's own order."""
    return _operator("mkldnn::_reorder_linear_weight")(weight.contiguous())


def _operator(name: str) -> Callable[..., Tensor]:
    operator = private_operator(name)
    assert operator is not None, "fused operators are called only where `ops.private.fuses` the type"
    return operator

"""A convolution or a matrix product, a sum and an activation in one step: nothing is written twice.

oneDNN multiplies by matrices in an order of its own: with those that `pack_linear` brings into it once, about
a tenth faster in float32 and a third in bfloat16. PyTorch calls them MKLDNN tensors. (Convolutions gain less,
and lose much where the order is not that of their size.)
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

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
    """As `convolution`, by oneDNN on the CPU. The result is written over `added`, where there is something.

    All are of the same type and come to lie in memory in the order channels_last. After a sum the activation
    is ReLU or none. Not differentiable.
    """
    maps = maps.contiguous(memory_format=torch.channels_last)
    stride, padding, dilation, groups = steps
    geometry = (padding, stride, dilation, groups)
    operations = torch.ops.mkldnn
    if added is not None:
        unary = "relu" if activation == "relu" else None
        total: Tensor = operations._convolution_pointwise_.binary(
            added.contiguous(memory_format=torch.channels_last),
            maps,
            weight,
            bias,
            *geometry,
            "add",
            1.0,
            unary,
            [],
            "",
        )
        return total
    result: Tensor = operations._convolution_pointwise(maps, weight, bias, *geometry, *_STEPS[activation])
    return result


def fused_linear(
    tokens: Float[Tensor, "*batch _in_channels"],
    weight: Float[Tensor, "channels _in_channels"],
    bias: Float[Tensor, " channels"] | None,
    activation: Activation,
) -> Float[Tensor, "*batch channels"]:
    """As `linear`, by oneDNN on the CPU; all are of the same type. Not differentiable."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, *_STEPS[activation])
    return result


def pack_linear(weight: Float[Tensor, "channels in_channels"]) -> Tensor:
    """The weight of `fused_linear` in oneDNN's order."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return packed

"""A convolution, a sum and an activation in one step: no map is written twice."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Activation = Literal["none", "relu", "relu6"]

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
    total = convolved if added is None else convolved + added
    match activation:
        case "relu":
            return total.relu()
        case "relu6":
            return functional.relu6(total)
        case "none":
            return total


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
    name, numbers = ("hardtanh", [0.0, 6.0]) if activation == "relu6" else (activation, [])
    result: Tensor = operations._convolution_pointwise(maps, weight, bias, *geometry, name, numbers, "")
    return result

"""Operations with several versions: chooses the fastest for the device and the type of the tensors.

All versions of an operation are equal up to rounding.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from unimask.ops.cpu.fused import (
    Activation,
    Steps,
    convolution,
    fused_convolution,
    fused_linear,
    linear,
)
from unimask.ops.deformable.cpu import bag_sampling
from unimask.ops.deformable.cuda import kernel_sampling, kernels_serve
from unimask.ops.deformable.plain import deformable_sampling
from unimask.ops.points import sample_features
from unimask.ops.positions import cell_centers
from unimask.ops.private import fuses
from unimask.structures import Size


def _on_cpu(tensor: Tensor) -> bool:
    """Return whether the tensor is on the CPU and operations run eagerly.

    Compilers and exporters get the plain versions only, which they optimise themselves.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def fast_deformable_sampling(
    values: Float[Tensor, "batch cells heads channels"],
    sizes: tuple[Size, ...],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    """Return what `ops.deformable.plain.deformable_sampling` does, by the fastest version for the device."""
    if _on_cpu(values):
        return bag_sampling(values, sizes, locations, weights)
    if kernels_serve(values, locations, weights):
        return kernel_sampling(values, sizes, locations, weights)
    return deformable_sampling(values, sizes, locations, weights)


def _no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast is off.

    Where it is off already the context does nothing, because an exporter would record that, too.
    """
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def convolve(
    maps: Float[Tensor, "batch _in_channels _height _width"],
    weight: Float[Tensor, "channels _channels_of_group _rows _columns"],
    bias: Float[Tensor, " channels"] | None,
    steps: Steps,
    activation: Activation,
    added: Float[Tensor, "batch channels _rows_out _columns_out"] | None = None,
) -> Float[Tensor, "batch channels _rows_out _columns_out"]:
    """Return activation(convolved maps + added), computed in the type of the weight, also under autocast.

    May write the result over `added`. Not differentiable.
    """
    maps = maps.to(weight.dtype)
    added = None if added is None else added.to(weight.dtype)
    if _on_cpu(maps) and fuses(weight.dtype):
        return fused_convolution(maps, weight, bias, steps, activation, added)
    with _no_autocast(maps):
        return convolution(maps, weight, bias, steps, activation, added)


def project(
    tokens: Float[Tensor, "*batch _in_channels"],
    weight: Float[Tensor, "channels _in_channels"],
    bias: Float[Tensor, " channels"] | None,
    activation: Activation,
) -> Float[Tensor, "*batch channels"]:
    """Return activation(tokens weight^T + bias), computed in the type of the weight, also under autocast.

    The weight may have been packed by `ops.cpu.fused.pack_linear`. Not differentiable.
    """
    tokens = tokens.to(weight.dtype)
    if _on_cpu(tokens) and fuses(weight.dtype):
        return fused_linear(tokens, weight, bias, activation)
    with _no_autocast(tokens):
        return linear(tokens, weight, bias, activation)


def softmax_over_few(logits: Float[Tensor, "*others few"]) -> Float[Tensor, "*others few"]:
    """Return the softmax over a last dimension of few elements.

    PyTorch's softmax processes short rows one by one on the CPU; operations on the whole tensor are six times
    as fast.
    """
    if not _on_cpu(logits):
        return logits.softmax(dim=-1)
    result: Tensor = _SoftmaxOverFew.apply(logits)
    return result


class _SoftmaxOverFew(torch.autograd.Function):
    """Softmax on the CPU; saves only its result for the backward pass."""

    @staticmethod
    def forward(context: Any, logits: Tensor) -> Tensor:
        result = (logits - logits.amax(dim=-1, keepdim=True)).exp_()
        result /= result.sum(dim=-1, keepdim=True)
        context.save_for_backward(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (result,) = context.saved_tensors
        products = gradients[0] * result
        return products.addcmul_(result, products.sum(dim=-1, keepdim=True), value=-1)


def resize_maps(
    maps: Float[Tensor, "batch channels height width"], size: Size
) -> Float[Tensor, "batch channels cells"]:
    """Resize maps bilinearly to a smaller size and return their cells, row by row.

    On the CPU only the cells that contribute are read; `functional.interpolate` converts all maps to another
    memory format first.
    """
    if not _on_cpu(maps):
        return functional.interpolate(maps, size, mode="bilinear", align_corners=False).flatten(2)
    centers = cell_centers(*size, device=maps.device)
    return sample_features(maps, centers.expand(len(maps), -1, -1))


def double_maps(
    maps: Float[Tensor, "batch in_channels height width"],
    weight: Float[Tensor, "in_channels channels 2 2"],
    bias: Float[Tensor, " channels"],
) -> Float[Tensor, "batch channels 2*height 2*width"]:
    """Return the transposed 2x2 convolution with stride 2, which turns each cell into four.

    On the CPU it is a matrix product, whose backward pass takes a fifth of the time of `conv_transpose2d`.
    """
    if not _on_cpu(maps):
        return functional.conv_transpose2d(maps, weight, bias, 2)
    matrix = weight.permute(2, 3, 1, 0).flatten(0, 2)
    cells = functional.linear(maps.permute(0, 2, 3, 1), matrix, bias.repeat(4))
    batch, height, width, _ = cells.shape
    rows = cells.view(batch, height, width, 2, -1).transpose(2, 3)
    return rows.reshape(batch, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


def multiply(
    first: Float[Tensor, "*#batch rows inner"], second: Float[Tensor, "*#batch inner columns"], out: Tensor
) -> None:
    """Write the matrix products into `out`; one factor is a single matrix, shared by the batch.

    On the CPU the products are computed one at a time, which is several times as fast as a batched product
    for these shapes.
    """
    if not _on_cpu(out):
        out.copy_(first @ second)
        return
    for index, result in enumerate(out):
        left = first if first.ndim == 2 else first[index]
        torch.mm(left, second if second.ndim == 2 else second[index], out=result)


def look_up(
    numbers: Int16[Tensor, "height width"], table: Int16[Tensor, " numbers"]
) -> Int16[Tensor, "height width"]:
    """Return `table[numbers]`; on the CPU by NumPy, which does not convert the indices to another type."""
    if numbers.device.type != "cpu":
        return table[numbers.int()]
    return torch.from_numpy(np.take(table.numpy(), numbers.numpy(), mode="clip"))


def in_small_parts(tensor: Tensor) -> bool:
    """Return whether to work in parts that fit the processor's cache: only on the CPU."""
    return _on_cpu(tensor)

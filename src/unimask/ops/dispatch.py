"""Which kernel runs: the one place that chooses one. All versions of an operation agree to rounding."""

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
    """Return whether operations run one by one on the CPU.

    A compiler or an exporter sees the plain versions only: it makes its own plans.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def fast_deformable_sampling(
    values: Float[Tensor, "batch cells heads channels"],
    sizes: tuple[Size, ...],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    """`ops.deformable.plain.deformable_sampling` by the fastest version for the device."""
    if _on_cpu(values):
        return bag_sampling(values, sizes, locations, weights)
    if kernels_serve(values, locations, weights):
        return kernel_sampling(values, sizes, locations, weights)
    return deformable_sampling(values, sizes, locations, weights)


def _no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Turns autocast off where it is on; an exporter would write down even that nothing was turned off."""
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
    """activation(convolved maps + added) in the type of the weight, also under autocast.

    May write over `added`. Not differentiable.
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
    """activation(tokens weight^T + bias) in the type of the weight, also under autocast.

    The weight may be one that `ops.cpu.fused.pack_linear` packed. Not differentiable.
    """
    tokens = tokens.to(weight.dtype)
    if _on_cpu(tokens) and fuses(weight.dtype):
        return fused_linear(tokens, weight, bias, activation)
    with _no_autocast(tokens):
        return linear(tokens, weight, bias, activation)


def softmax_over_few(logits: Float[Tensor, "*others few"]) -> Float[Tensor, "*others few"]:
    """Return the softmax over a last dimension of a few elements.

    On the CPU PyTorch's own takes each short row for itself; whole-tensor operations are six times as fast.
    """
    if not _on_cpu(logits):
        return logits.softmax(dim=-1)
    result: Tensor = _SoftmaxOverFew.apply(logits)
    return result


class _SoftmaxOverFew(torch.autograd.Function):
    """Keeps its result only."""

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
    """Maps resized bilinearly to a smaller size, row by row.

    On the CPU only the cells that take part are read; PyTorch's own brings all maps into another order first.
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
    """Return the transposed convolution of 2x2 with a stride of 2, in which each cell becomes four.

    On the CPU it is one matrix product, whose backward pass takes a fifth of the time of PyTorch's.
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
    """Writes the products into `out`; one of the two factors is a single matrix for the whole batch.

    On the CPU one product at a time, which is several times as fast as PyTorch's batched one for such shapes.
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
    """Look each number up in the table; on the CPU with NumPy, which needs no indices of another type."""
    if numbers.device.type != "cpu":
        return table[numbers.int()]
    return torch.from_numpy(np.take(table.numpy(), numbers.numpy(), mode="clip"))


def in_small_parts(tensor: Tensor) -> bool:
    """Return whether work is cut into parts that fit the cache of a processor: not on other devices."""
    return _on_cpu(tensor)

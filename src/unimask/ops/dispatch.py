"""Which version of an operation runs: the one place that chooses. All versions agree to rounding."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from unimask.ops.cpu.fused import (
    Activation,
    Steps,
    convolution,
    fused_convolution,
    fused_linear,
    linear,
    pack_linear,
)
from unimask.ops.cpu.norms import CELLS_AT_ONCE, overwrite_with_group_norm
from unimask.ops.cpu.winograd import transform_kernel, winograd_convolution, winograd_serves
from unimask.ops.deformable.cpu import BagReader, bag_sampling
from unimask.ops.deformable.cuda import kernel_sampling, kernels_serve
from unimask.ops.deformable.plain import deformable_sampling
from unimask.ops.points import sample_features
from unimask.ops.positions import cell_centers
from unimask.structures import Size

TOKENS_AT_ONCE = 1024
"""So many tokens of a feed-forward's hidden width fit into the cache of a processor."""

VERY_MANY_TOKENS = 4096
"""From so many tokens of a picture on, memory is worth more than the time to compute attention twice."""

WINDOW_TOKENS_AT_ONCE = 4096
"""Tokens of windows whose attention is computed at a time."""


def _on_cpu(tensor: Tensor) -> bool:
    """Whether operations run one by one on the CPU. A compiler or an exporter sees the plain versions only:
    it makes its own plans."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def fast_deformable_sampling(
    values: Float[Tensor, "batch cells heads channels"],
    sizes: tuple[Size, ...],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    """`ops.deformable.deformable_sampling` by the fastest version there is for the device."""
    if _on_cpu(values):
        return bag_sampling(values, sizes, locations, weights)
    if kernels_serve(values, locations, weights):
        return kernel_sampling(values, sizes, locations, weights)
    return deformable_sampling(values, sizes, locations, weights)


def deformable_sampler(
    tokens: Float[Tensor, "batch cells _channels"],
    project: Callable[[Tensor], Tensor],
    sizes: tuple[Size, ...],
    points: int,
    dtype: torch.dtype,
) -> Callable[[Tensor, Tensor], Tensor]:
    """`fast_deformable_sampling` of what `project` makes of tokens: locations and weights go in.

    The projected values are (batch, cells, heads, channels). Locations and weights have the type, and so has
    the result.
    """
    if _on_cpu(tokens) and not torch.is_grad_enabled():
        return BagReader(tokens, project, sizes, points, dtype)
    values = project(tokens).to(dtype)

    def sample(locations: Tensor, weights: Tensor) -> Tensor:
        return fast_deformable_sampling(values, sizes, locations, weights)

    return sample


def add_places(
    steps: Float[Tensor, "batch queries heads levels points 2"], places: Float[Tensor, "queries 2"]
) -> Float[Tensor, "batch queries heads levels points 2"]:
    """`places + steps` for each query; where no gradient is wanted, steps may be written over.

    On the CPU a pair is then a complex number: PyTorch adds one to many of those five times as fast.
    """
    if _on_cpu(steps) and not torch.is_grad_enabled():
        shifts = torch.view_as_complex(places)[:, None, None, None]
        return torch.view_as_real(torch.view_as_complex(steps).add_(shifts))
    return places[:, None, None, None] + steps


def _fuses(dtype: torch.dtype) -> bool:
    """Whether PyTorch's oneDNN on this processor has fused operations of a type."""
    if not torch.backends.mkldnn.is_available() or "AVX" not in torch.backends.cpu.get_cpu_capability():
        return False
    reduced = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or reduced


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
    kernel: Float[Tensor, "16 _in_channels channels"] | None = None,
    *,
    overwrite: bool = False,
) -> Float[Tensor, "batch channels _rows_out _columns_out"]:
    """activation(convolved maps + added) in the type of the weight, also under autocast.

    On the CPU, where no gradient is wanted, `added` is written over, and with `overwrite` maybe the maps:
    large ones are dear to ask for. `kernel` is what `transformed_kernel` made of the weight.
    """
    maps = maps.to(weight.dtype)
    added = None if added is None else added.to(weight.dtype)
    if _on_cpu(maps) and not torch.is_grad_enabled() and _fuses(weight.dtype):
        if added is None and activation == "none":
            if kernel is not None:
                in_order = maps.contiguous(memory_format=torch.channels_last)
                return winograd_convolution(in_order, kernel, bias, overwrite=overwrite)
            if overwrite and weight.shape[2:] == (1, 1) and steps == ([1, 1], [0, 0], [1, 1], 1):
                return mix_channels(maps, weight, bias)
        return fused_convolution(maps, weight, bias, steps, activation, added)
    with _no_autocast(maps):
        return convolution(maps, weight, bias, steps, activation, added)


def transformed_kernel(
    weight: Float[Tensor, "channels channels_of_group rows columns"], steps: Steps
) -> Float[Tensor, "16 channels_of_group channels"] | None:
    """What makes `convolve` faster, where something does; it takes 16/9 of the weight's memory."""
    serves = weight.device.type == "cpu" and winograd_serves(weight, steps)
    return transform_kernel(weight) if serves else None


def project(
    tokens: Float[Tensor, "*batch _in_channels"],
    weight: Float[Tensor, "channels _in_channels"],
    bias: Float[Tensor, " channels"] | None,
    activation: Activation,
) -> Float[Tensor, "*batch channels"]:
    """activation(tokens weight^T + bias) in the type of the weight, also under autocast."""
    tokens = tokens.to(weight.dtype)
    if _on_cpu(tokens) and not torch.is_grad_enabled() and _fuses(weight.dtype):
        return fused_linear(tokens, weight, bias, activation)
    with _no_autocast(tokens):
        return linear(tokens, unpacked(weight), bias, activation)


def packed(weight: Float[Tensor, "channels _in_channels"]) -> Tensor:
    """The weight of `project` in the order in which it is fastest.

    It may be good for nothing else; `unpacked` makes it as it was.
    """
    serves = weight.device.type == "cpu" and not weight.is_mkldnn and _fuses(weight.dtype)
    return pack_linear(weight) if serves else weight


def unpacked(weight: Tensor) -> Tensor:
    """A weight in the usual order."""
    return weight.to_dense() if weight.is_mkldnn else weight


def softmax_over_few(logits: Float[Tensor, "*others few"]) -> Float[Tensor, "*others few"]:
    """The softmax over a last dimension of a few elements.

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


def group_norm(
    maps: Float[Tensor, "batch channels height width"],
    groups: int,
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    eps: float,
) -> Float[Tensor, "batch channels height width"]:
    """Group normalisation of maps that nobody else needs: they may be written over.

    That is done on the CPU where no gradient is wanted.
    """
    in_order = maps.is_contiguous(memory_format=torch.channels_last) and maps.numel() > 0
    if _on_cpu(maps) and not torch.is_grad_enabled() and in_order and maps.dtype == torch.float32:
        return overwrite_with_group_norm(maps, groups, weight, bias, eps)
    return functional.group_norm(maps, groups, weight, bias, eps)


def mix_channels(
    maps: Float[Tensor, "batch channels height width"],
    weight: Float[Tensor, "out_channels channels 1 1"],
    bias: Float[Tensor, " out_channels"] | None,
) -> Float[Tensor, "batch out_channels height width"]:
    """A 1x1 convolution of maps that nobody else needs: they may be written over.

    That is done on the CPU where no gradient is wanted and the channels are as many: large maps are dear to
    ask for.
    """
    in_order = maps.is_contiguous(memory_format=torch.channels_last) and maps.numel() > 0
    same = weight.shape[0] == weight.shape[1] and maps.dtype == weight.dtype
    if not (_on_cpu(maps) and not torch.is_grad_enabled() and in_order and same):
        return functional.conv2d(maps, weight, bias)
    matrix = weight.flatten(1)
    for part in maps.permute(0, 2, 3, 1).flatten(0, 2).split(CELLS_AT_ONCE):
        part.copy_(functional.linear(part, matrix, bias))
    return maps


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


def token_by_token(
    function: Callable[[Tensor], Tensor], tokens: Float[Tensor, "batch tokens channels"]
) -> Float[Tensor, "batch tokens others"]:
    """What `function` makes of each token, where no token depends on another.

    On the CPU a few tokens at a time: what lies between stays in the cache, and no large memory is asked for.
    Nor is it kept for the backward pass, which computes it again.
    """
    if not _on_cpu(tokens) or tokens.shape[0] * tokens.shape[1] <= TOKENS_AT_ONCE:
        return function(tokens)
    step = partial(checkpoint, function, use_reentrant=False) if torch.is_grad_enabled() else function
    parts = (step(part) for part in tokens.flatten(0, 1)[None].split(TOKENS_AT_ONCE, dim=1))
    return _joined(parts, tokens.shape[0] * tokens.shape[1]).view(*tokens.shape[:2], -1)


def _joined(parts: Iterator[Tensor], count: int) -> Float[Tensor, "batch count channels"]:
    """`torch.cat` along the second dimension; without gradients each part is taken while in the cache."""
    if torch.is_grad_enabled():
        return torch.cat(list(parts), dim=1)
    first = next(parts)
    result = first.new_empty((first.shape[0], count, first.shape[2]))
    start = 0
    for part in chain((first,), parts):
        result[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    return result


def overwrites(tokens: Tensor) -> bool:
    """Whether `token_over_token` writes over tokens."""
    return _on_cpu(tokens) and not torch.is_grad_enabled()


def token_over_token(
    function: Callable[..., Tensor], tokens: Float[Tensor, "batch tokens channels"], *others: Tensor
) -> Float[Tensor, "batch tokens channels"]:
    """`function(tokens, *others)`, where no token depends on another and nobody else needs the tokens.

    The others have the tokens in their second dimension. A few are computed at a time, for the reasons of
    `token_by_token`, and written over those that came in.
    """
    at_once = max(1, TOKENS_AT_ONCE // max(1, tokens.shape[0]))
    result = tokens
    for start in range(0, tokens.shape[1], at_once):
        some = slice(start, start + at_once)
        found = function(*(tensor[:, some] for tensor in (tokens, *others)))
        if found.dtype != result.dtype:  # of the first ones, in mixed precision
            result = tokens.to(found.dtype)
        result[:, some] = found
    return result


def recomputed(function: Callable[..., Tensor], tokens: Tensor, *others: object) -> Tensor:
    """`function(tokens, *others)`, where tokens are (batch, tokens, channels).

    Of very many tokens on the CPU only the inputs are kept for the backward pass, which computes the rest
    again.
    """
    if not _on_cpu(tokens) or not torch.is_grad_enabled() or tokens.shape[1] < VERY_MANY_TOKENS:
        return function(tokens, *others)
    result: Tensor = checkpoint(function, tokens, *others, use_reentrant=False)
    return result


def window_by_window(
    function: Callable[[Tensor, Tensor], Tensor],
    windows: Float[Tensor, "batch windows tokens channels"],
    biases: Float[Tensor, "groups tokens tokens"],
) -> Float[Tensor, "batch windows tokens channels"]:
    """What `function` makes of each window and its bias; there is one bias for all windows, or one for each.

    On the CPU a few windows at a time if no gradient is wanted, for the reasons of `token_by_token`. (The
    gradient of what makes the biases would have to be added up over all parts.)
    """
    at_once = max(1, WINDOW_TOKENS_AT_ONCE // (windows.shape[0] * windows.shape[2]))
    if not _on_cpu(windows) or torch.is_grad_enabled() or windows.shape[1] <= at_once:
        return function(windows, biases)
    parts = windows.split(at_once, dim=1)
    bias_of_part = biases.split(at_once) if len(biases) > 1 else (biases,) * len(parts)
    return torch.cat([function(*part) for part in zip(parts, bias_of_part, strict=True)], dim=1)


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
    """What the table says about each number; on the CPU NumPy needs no indices of another type for it."""
    if numbers.device.type != "cpu":
        return table[numbers.int()]
    return torch.from_numpy(np.take(table.numpy(), numbers.numpy(), mode="clip"))


def in_small_parts(tensor: Tensor) -> bool:
    """Whether work is cut into parts that fit the cache of a processor: not on other devices."""
    return _on_cpu(tensor)

"""Deformable sampling on CUDA: the Triton kernels, forward and backward, as custom operators of PyTorch.

As operators of `torch.library` they cause no graph break in `torch.compile`. They do not synchronise with the
host, so they can be captured in a CUDA graph. This file can be imported without Triton and without a GPU.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unimask.structures import Size

HAS_TRITON = find_spec("triton") is not None
TYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK_VALUES = 256
"""How many values one program computes (channels of a head times queries); a power of 2."""
WARPS = 1
"""Warps per program. A single warp needs no barriers."""
WIDE_FROM = 2**30
"""Offsets are 64-bit from this value on; below 2^31, because masked addresses lie outside the tensor."""

Whole = int | torch.SymInt


def kernels_serve(values: Tensor, locations: Tensor, weights: Tensor) -> bool:
    """Return whether the kernels support these tensors: on a CUDA device, of `TYPES`, with Triton installed.

    False where deterministic algorithms are required, since the gradient of the values is summed in no fixed
    order.
    """
    return (
        HAS_TRITON
        and values.is_cuda
        and values.dtype in TYPES
        and locations.dtype in TYPES
        and weights.dtype in TYPES
        and not torch.are_deterministic_algorithms_enabled()
    )


def kernel_sampling(
    values: Float[Tensor, "batch cells heads channels"],
    sizes: tuple[Size, ...],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    """Return what `ops.deformable.plain.deformable_sampling` does, up to rounding, by the Triton kernels.

    The three tensors may differ in type: with values in half precision and locations and weights in float32,
    only the result is rounded, to the type of `values`. All sums are float32. Gradients have the type of the
    tensor that they belong to. The gradient of the values is summed in no fixed order, so it may differ
    between runs by rounding. There are no second derivatives.

    Raises:
        ValueError: the shapes do not fit together, or a type is not in `TYPES`.
        RuntimeError: Triton is not installed, or the tensors are not on a CUDA device.

    Source: Deformable DETR (2010.04159), Sec. 4.1, Eq. 3.
    """
    heights, widths = [height for height, _ in sizes], [width for _, width in sizes]
    result: Tensor = _sample(values, heights, widths, locations, weights)
    return result


# schemas are written out because torch before 2.7 infers none from `collections.abc.Sequence`
@torch.library.custom_op(
    "unimask::deformable_sampling",
    mutates_args=(),
    schema="(Tensor values, SymInt[] heights, SymInt[] widths, Tensor locations, Tensor weights) -> Tensor",
)
def _sample(
    values: Tensor, heights: Sequence[int], widths: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    _check(values, heights, widths, locations, weights)
    batch, _, heads, channels = values.shape
    result = values.new_empty((batch, locations.shape[1], heads * channels))
    if result.numel() == 0:
        return result
    values = _with_channels_last(values)
    with torch.cuda.device_of(values):
        _kernels(values).forward_kernel[_grid(values, locations)](
            values,
            locations,
            weights,
            result,
            locations.shape[1],
            tuple(map(float, heights)),
            tuple(map(float, widths)),
            *values.stride()[:3],
            *locations.stride(),
            *weights.stride(),
            *result.stride()[:2],
            **_constants(values, locations),
            WIDE=_is_wide(values, locations, weights, result),
            num_warps=WARPS,
        )
    return result


@_sample.register_fake
def _(
    values: Tensor, heights: Sequence[Whole], widths: Sequence[Whole], locations: Tensor, weights: Tensor
) -> Tensor:
    return values.new_empty((values.shape[0], locations.shape[1], values.shape[2] * values.shape[3]))


@torch.library.custom_op(
    "unimask::deformable_sampling_gradients",
    mutates_args=(),
    schema="(Tensor gradient, Tensor values, SymInt[] heights, SymInt[] widths, Tensor locations, "
    "Tensor weights) -> (Tensor, Tensor, Tensor)",
)
def _gradients(
    gradient: Tensor,
    values: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    of_values = values.new_zeros(values.shape, dtype=torch.float32)
    of_locations, of_weights = locations.new_empty(locations.shape), weights.new_empty(weights.shape)
    if gradient.numel() == 0:
        return of_values.to(values.dtype), of_locations.zero_(), of_weights.zero_()
    values, gradient = _with_channels_last(values), gradient.contiguous()
    with torch.cuda.device_of(values):
        _kernels(values).backward_kernel[_grid(values, locations)](
            gradient,
            values,
            locations,
            weights,
            of_values,
            of_locations,
            of_weights,
            locations.shape[1],
            values.shape[2],
            tuple(map(float, heights)),
            tuple(map(float, widths)),
            *gradient.stride()[:2],
            *values.stride()[:3],
            *locations.stride(),
            *weights.stride(),
            *of_values.stride()[:2],
            **_constants(values, locations),
            VECTOR=min(4, _block_channels(values)),
            WIDE=_is_wide(values, locations, weights, gradient, of_values),
            num_warps=WARPS,
        )
    return of_values.to(values.dtype), of_locations, of_weights


@_gradients.register_fake
def _(
    gradient: Tensor,
    values: Tensor,
    heights: Sequence[Whole],
    widths: Sequence[Whole],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        values.new_empty(values.shape),
        locations.new_empty(locations.shape),
        weights.new_empty(weights.shape),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, ctx.heights, ctx.widths, locations, weights = inputs
    ctx.save_for_backward(values, locations, weights)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, Tensor, Tensor]:
    values, locations, weights = ctx.saved_tensors
    of_values, of_locations, of_weights = _gradients(
        gradient, values, ctx.heights, ctx.widths, locations, weights
    )
    return of_values, None, None, of_locations, of_weights


_sample.register_autograd(_backward, setup_context=_keep)


def _kernels(values: Tensor) -> ModuleType:
    """Return the module of the kernels, imported at the first call; RuntimeError if they cannot run."""
    if not HAS_TRITON:
        raise RuntimeError("the kernels of deformable sampling need Triton, which is not installed")
    if not values.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"the kernels of deformable sampling need a CUDA device, not {values.device}")
    from unimask.ops.deformable import triton as deformable_kernels

    return deformable_kernels


def _check(
    values: Tensor, heights: Sequence[int], widths: Sequence[int], locations: Tensor, weights: Tensor
) -> None:
    """Check shapes and types: the kernels read memory at computed addresses, without bounds checks."""
    cells = sum(height * width for height, width in zip(heights, widths, strict=True))
    batch, queries, _, _, points, _ = locations.shape
    expected = (batch, queries, values.shape[2], len(heights), points)
    if values.shape[:2] != (batch, cells) or locations.shape != (*expected, 2) or weights.shape != expected:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (values, locations, weights))
        raise ValueError(f"values, locations and weights do not fit together in {cells} cells: {shapes}")
    if any(tensor.dtype not in TYPES for tensor in (values, locations, weights)):
        raise ValueError("values, locations and weights must be float32, bfloat16 or float16")


def _with_channels_last(values: Tensor) -> Tensor:
    return values if values.stride(3) == 1 else values.contiguous()


def _block_channels(values: Tensor) -> int:
    return 1 << (values.shape[3] - 1).bit_length()


def _block_queries(values: Tensor) -> int:
    return max(1, BLOCK_VALUES // _block_channels(values))


def _grid(values: Tensor, locations: Tensor) -> tuple[int, int, int]:
    """Return the grid; blocks of queries vary fastest, so concurrent programs read the map of one head."""
    return -(-locations.shape[1] // _block_queries(values)), values.shape[2], values.shape[0]


def _constants(values: Tensor, locations: Tensor) -> dict[str, int]:
    """Return the compile-time constants of the kernels."""
    return {
        "LEVELS": locations.shape[3],
        "POINTS": locations.shape[4],
        "CHANNELS": values.shape[3],
        "BLOCK_QUERIES": _block_queries(values),
        "BLOCK_CHANNELS": _block_channels(values),
    }


def _is_wide(*tensors: Tensor) -> bool:
    """Return whether offsets inside an image need 64 bits (`WIDE_FROM`)."""
    reaches = (
        sum(size * stride for size, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))
        for tensor in tensors
    )
    return any(reach >= WIDE_FROM for reach in reaches)

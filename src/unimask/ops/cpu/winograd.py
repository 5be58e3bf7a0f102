"""Winograd convolutions on the CPU: 3x3 convolutions of many channels with fewer multiplications.

Each 4x4 piece of the padded map (the paper's tiles; they overlap by two) gives 2x2 results. In the
transformed space this takes 16 products instead of 36, each of them a matrix product over the channels for
all pieces. The transformations cost little in comparison where there are many channels.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (1509.09308), Sec. 4.1, F(2x2, 3x3).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from unimask.ops.cpu.fused import Steps

LEAST_CHANNELS = 256
"""With at least this many input and output channels it is faster than a plain convolution."""

PIECES_AT_ONCE = 160
"""About how many pieces are computed at a time: few enough for the processor's cache."""

_KERNEL = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)


def winograd_serves(weight: Float[Tensor, "channels channels_of_group rows columns"], steps: Steps) -> bool:
    """Return whether Winograd's algorithm applies to this convolution and is faster than the plain one."""
    simple = steps == ([1, 1], [1, 1], [1, 1], 1) and weight.shape[2:] == (3, 3)
    return simple and weight.dtype == torch.float32 and min(weight.shape[:2]) >= LEAST_CHANNELS


def transform_kernel(
    weight: Float[Tensor, "channels in_channels 3 3"],
) -> Float[Tensor, "16 in_channels channels"]:
    """Return the kernel in the transformed space, as `winograd_convolution` takes it."""
    kernel = _KERNEL.to(weight.device)
    transformed = torch.einsum("ri,oxij,cj->rcxo", kernel, weight.double(), kernel)
    return transformed.flatten(0, 1).to(weight.dtype).contiguous()


def winograd_convolution(
    maps: Float[Tensor, "batch in_channels height width"],
    kernel: Float[Tensor, "16 in_channels channels"],
    bias: Float[Tensor, " channels"] | None,
    *,
    overwrite: bool = False,
) -> Float[Tensor, "batch channels height width"]:
    """Return the 3x3 convolution of `maps` with padding 1, equal to `functional.conv2d` up to rounding.

    `maps` must have the memory format channels_last, and so has the result. With `overwrite` the result may
    be written over `maps`. Not differentiable.
    """
    _, in_channels, height, width = maps.shape
    if height % 2 or width % 2:
        padded = functional.pad(maps, (0, width % 2, 0, height % 2))
        return winograd_convolution(padded, kernel, bias, overwrite=True)[:, :, :height, :width]
    images = maps.permute(0, 2, 3, 1)
    in_place = overwrite and in_channels == kernel.shape[2]
    results = images if in_place else images.new_empty(*images.shape[:3], kernel.shape[2])
    rows = max(1, PIECES_AT_ONCE * 2 // max(width, 1))  # of pieces
    space = _Space(images, min(rows, height // 2), kernel)
    for image, result in zip(images, results, strict=True):
        space.above.zero_()
        for start in range(0, height, 2 * rows):
            space.convolve(image, start, min(start + 2 * rows, height), kernel, bias, result)
    return results.permute(0, 3, 1, 2)


class _Space:
    """Buffers for a few rows of pieces, allocated once and reused for all rows."""

    def __init__(self, images: Tensor, rows: int, kernel: Tensor) -> None:
        width, (_, in_channels, channels) = images.shape[2], kernel.shape
        self.seen = images.new_empty(2 * rows + 2, width, in_channels)
        self.above = images.new_empty(width, in_channels)
        self.by_row = images.new_zeros(4, rows, width + 2, in_channels)  # its first and last column stay 0
        most = 16 * in_channels, 16 * channels, 8 * channels
        self.pieces, self.products, self.halves = (
            images.new_empty(size * rows * width // 2) for size in most
        )
        # the pieces are not needed after the product, so the sums may use their memory
        self.sums = self.pieces if in_channels >= channels else torch.empty_like(self.halves)

    def convolve(
        self,
        image: Float[Tensor, "height width in_channels"],
        start: int,
        stop: int,
        kernel: Tensor,
        bias: Tensor | None,
        result: Float[Tensor, "height width channels"],
    ) -> None:
        """Write rows `start` to `stop` of the result; calls go through an image from top to bottom.

        The last call may have overwritten the row above `start`, so `above` keeps a copy of it.
        """
        rows, columns = (stop - start) // 2, image.shape[1] // 2
        self.seen[0] = self.above
        below = image[start : stop + 1]
        self.seen[1 : 1 + len(below)] = below
        self.seen[1 + len(below) : 2 * rows + 2] = 0
        self.above.copy_(self.seen[2 * rows])
        by_row = self.by_row[:, :rows]
        _pieces([self.seen[first : first + 2 * rows : 2] for first in range(4)], by_row[:, :, 1:-1].unbind())
        pieces = _first(self.pieces, (4, 4, rows, columns, image.shape[2]))
        columns_of = [by_row[:, :, first : first + 2 * columns : 2] for first in range(4)]
        _pieces(columns_of, pieces.unbind(1))
        shape = (rows, columns, kernel.shape[2])
        products = _first(self.products, (4, 4, *shape))
        torch.bmm(pieces.view(16, rows * columns, -1), kernel, out=products.view(16, rows * columns, -1))
        if bias is not None:
            products[1, 1] += bias  # this product is part of each of the four results, once
        halves = _first(self.halves, (2, 4, *shape))
        _results(products.unbind(), _first(self.sums, (2, 4, *shape)), halves.unbind())
        parts = result[start:stop].view(rows, 2, columns, 2, -1).permute(3, 1, 0, 2, 4)
        _results(halves.unbind(1), _first(self.sums, (2, 2, *shape)), parts.unbind())


def _first(memory: Tensor, shape: tuple[int, ...]) -> Tensor:
    return memory[: math.prod(shape)].view(shape)


def _pieces(values: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Transform four neighbouring values along one axis (matrix B of the paper)."""
    torch.sub(values[0], values[2], out=out[0])
    torch.add(values[1], values[2], out=out[1])
    torch.sub(values[2], values[1], out=out[2])
    torch.sub(values[1], values[3], out=out[3])


def _results(products: Sequence[Tensor], sums: Tensor, out: Sequence[Tensor]) -> None:
    """Transform four neighbouring products along one axis to two results (matrix A); `sums` is a buffer."""
    torch.add(products[0], torch.add(products[1], products[2], out=sums[0]), out=out[0])
    torch.sub(torch.sub(products[1], products[2], out=sums[1]), products[3], out=out[1])

"""TensorFlow's "same" padding: the size of the output is that of the input over the stride, rounded up.

The amount of padding depends on the size of the maps. If it is odd, the extra row or column is at the bottom
or right.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def pair_of(value: int | tuple[int, ...]) -> tuple[int, int]:
    """Return a size argument of a torch layer as a pair (rows, columns)."""
    rows, columns = (value, value) if isinstance(value, int) else value
    return rows, columns


class SamePadding(nn.Module):
    """Pads maps with zeros for a layer with this kernel size, stride and dilation."""

    def __init__(
        self, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation

    def forward(
        self, maps: Float[Tensor, "batch channels _height _width"]
    ) -> Float[Tensor, "batch channels _padded_height _padded_width"]:
        """Return the maps, padded with zeros on all sides."""
        (top, bottom), (left, right) = (
            _halves(side, kernel, step, apart)
            for side, kernel, step, apart in zip(
                maps.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        return functional.pad(maps, (left, right, top, bottom))


def _halves(side: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    outputs = -(-side // stride)
    missing = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
    return missing // 2, missing - missing // 2


class SameConvolution(nn.Conv2d):
    """A convolution with "same" padding, and no other padding."""

    def forward(
        self, maps: Float[Tensor, "batch in_channels _height _width"]
    ) -> Float[Tensor, "batch out_channels _rows _columns"]:
        """Return the convolved maps."""
        padded = SamePadding(pair_of(self.kernel_size), pair_of(self.stride), pair_of(self.dilation))(maps)
        return super().forward(padded)


class SameAveragePool(nn.AvgPool2d):
    """Average pooling with "same" padding, whose zeros count in the averages, as in timm's `AvgPool2dSame`.

    `count_include_pad` concerns only padding that torch itself adds.
    """

    def forward(
        self, maps: Float[Tensor, "batch channels _height _width"]
    ) -> Float[Tensor, "batch channels _rows _columns"]:
        """Return the pooled maps."""
        padded = SamePadding(pair_of(self.kernel_size), pair_of(self.stride), (1, 1))(maps)
        return super().forward(padded)

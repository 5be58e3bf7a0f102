"""TensorFlow's "same" padding: as many outputs as inputs, divided by the stride and rounded up.

How much is padded depends on the size of the maps; the smaller half comes first.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def pair_of(value: int | tuple[int, ...]) -> tuple[int, int]:
    """Return a size as torch's layers keep it, for rows and columns."""
    rows, columns = (value, value) if isinstance(value, int) else value
    return rows, columns


class SamePadding(nn.Module):
    """The padding alone, with zeros."""

    def __init__(
        self, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation

    def forward(
        self, maps: Float[Tensor, "batch channels _height _width"]
    ) -> Float[Tensor, "batch channels _padded_height _padded_width"]:
        """Return the maps with zeros around."""
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
    """A convolution with that padding; it has no other."""

    def forward(
        self, maps: Float[Tensor, "batch in_channels _height _width"]
    ) -> Float[Tensor, "batch out_channels _rows _columns"]:
        """Return the convolved maps."""
        padded = SamePadding(pair_of(self.kernel_size), pair_of(self.stride), pair_of(self.dilation))(maps)
        return super().forward(padded)


class SameAveragePool(nn.AvgPool2d):
    """An average pool with that padding, whose zeros count as `count_include_pad` says of torch's own.

    As in timm's `AvgPool2dSame`, they count: they are part of the maps that torch pools.
    """

    def forward(
        self, maps: Float[Tensor, "batch channels _height _width"]
    ) -> Float[Tensor, "batch channels _rows _columns"]:
        """Return the pooled maps."""
        padded = SamePadding(pair_of(self.kernel_size), pair_of(self.stride), (1, 1))(maps)
        return super().forward(padded)

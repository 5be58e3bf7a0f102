"""Layers of a model that is ready to predict: what follows each of them is done in the same step."""

import copy
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn

from unimask.nn.attention import Attention
from unimask.ops.cpu.fused import Activation
from unimask.ops.dispatch import convolve, packed, project, transformed_kernel, unpacked


class SamePadding(nn.Module):
    """TensorFlow's "same" padding of a convolution: how much depends on the size of the maps."""

    def __init__(
        self, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation

    def forward(
        self, maps: Float[Tensor, "batch channels _height _width"]
    ) -> Float[Tensor, "batch channels _padded_height _padded_width"]:
        """The maps with zeros around."""
        return pad_same(maps, list(self.kernel_size), list(self.stride), list(self.dilation))


class FusedLinear(nn.Module):
    """A linear layer and its activation, computed in the type of its weight: autocast changes nothing."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.activation: Activation = "none"

    def forward(self, tokens: Float[Tensor, "*batch _in_channels"]) -> Float[Tensor, "*batch _channels"]:
        """The tokens, projected and activated."""
        return project(tokens, self.weight, self.bias, self.activation)

    def pack(self) -> None:
        """Brings the weight into the order in which it is fastest."""
        self.weight = nn.Parameter(packed(self.weight.detach()), requires_grad=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FusedLinear":
        """A copy whose weight is in the usual order: it can be exported, moved and changed."""
        memo[id(self.weight)] = nn.Parameter(unpacked(self.weight.detach()).clone(), requires_grad=False)
        other = self.__new__(type(self))
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other


class FusedAttention(Attention):
    """Attention whose projections are `FusedLinear`."""

    def __init__(self, attention: Attention) -> None:
        nn.Module.__init__(self)
        self.heads, self.dropout = attention.heads, attention.dropout
        parts = zip(attention.input_weight.chunk(3), attention.input_bias.chunk(3), strict=True)
        self.inputs = nn.ModuleList(FusedLinear(weight.clone(), bias.clone()) for weight, bias in parts)
        assert isinstance(attention.output, nn.Linear)
        self.output = FusedLinear(attention.output.weight, attention.output.bias)

    def _input(
        self, part: int, inputs: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch heads tokens head_channels"]:
        projected: Tensor = self.inputs[part](inputs)
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FusedConvolution(nn.Module):
    """A convolution and its activation, computed in the type of its weight: autocast changes nothing."""

    kernel: Tensor | None

    def __init__(self, convolution: nn.Conv2d, activation: Activation = "none") -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        stride, padding, dilation = convolution.stride, convolution.padding, convolution.dilation
        assert not isinstance(padding, str)
        self.steps = list(stride), list(padding), list(dilation), convolution.groups
        self.activation: Activation = activation
        self.register_buffer("kernel", None, persistent=False)
        self.pad: nn.Module = nn.Identity()
        if isinstance(convolution, Conv2dSame):
            rows, columns = convolution.kernel_size
            self.pad = SamePadding((rows, columns), (stride[0], stride[1]), (dilation[0], dilation[1]))

    def forward(
        self, maps: Float[Tensor, "batch _in_channels _height _width"], *, overwrite: bool = False
    ) -> Float[Tensor, "batch _channels _rows _columns"]:
        """The maps, convolved and activated. With `overwrite` they may be written over: nobody needs them."""
        return convolve(
            self.pad(maps),
            self.weight,
            self.bias,
            self.steps,
            self.activation,
            kernel=self.kernel,
            overwrite=overwrite,
        )

    def transform(self) -> None:
        """Keeps the weight in the form in which it is fastest, too, where there is one."""
        self.kernel = transformed_kernel(self.weight.detach(), self.steps)

    def add_to(
        self,
        others: Float[Tensor, "batch channels rows columns"],
        maps: Float[Tensor, "batch _in_channels _height _width"],
    ) -> Float[Tensor, "batch channels rows columns"]:
        """The sum of `others`, which may be written over, and the convolved maps, activated."""
        return convolve(self.pad(maps), self.weight, self.bias, self.steps, self.activation, others)


class FusedResidual(nn.Module):
    """Convolutions one after the other, and a shortcut that is added before the last activation.

    The maps that come in may be written over.
    """

    def __init__(self, convolutions: Sequence[FusedConvolution], shortcut: nn.Module) -> None:
        super().__init__()
        *first, self.last = convolutions
        self.first = nn.Sequential(*first)
        self.shortcut = shortcut

    def forward(
        self, maps: Float[Tensor, "batch _in_channels _height _width"]
    ) -> Float[Tensor, "batch _channels _rows _columns"]:
        """The maps after the block."""
        found = self.first(maps)
        return self.last.add_to(self.shortcut(maps), found)

"""Fused layers for inference: a convolution or linear layer with the activation and the sum that follow it.

They are not differentiable, and compute in the type of their weights, also under autocast.
"""

import copy
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from unimask.nn.same import SameConvolution, SamePadding, pair_of
from unimask.ops.cpu.fused import Activation, pack_linear
from unimask.ops.dispatch import convolve, project
from unimask.ops.private import fuses


class FusedLinear(nn.Module):
    """A linear layer with its activation."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.activation: Activation = "none"

    def forward(self, tokens: Float[Tensor, "*batch _in_channels"]) -> Float[Tensor, "*batch _channels"]:
        """Return the tokens, projected and activated."""
        return project(tokens, self.weight, self.bias, self.activation)

    def pack(self) -> None:
        """Convert the weight to the memory layout that is fastest on the CPU, where oneDNN has one."""
        if fuses(self.weight.dtype) and not self.weight.is_mkldnn:
            self.weight = nn.Parameter(pack_linear(self.weight.detach()), requires_grad=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FusedLinear":
        """Return a copy whose weight is not packed, since packed weights cannot be copied."""
        weight = self.weight.detach()
        weight = weight.to_dense() if weight.is_mkldnn else weight.clone()
        memo[id(self.weight)] = nn.Parameter(weight, requires_grad=False)
        other = self.__new__(type(self))
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, with the weight unpacked: packed weights cannot leave the process."""
        plain = copy.deepcopy(self) if self.weight.is_mkldnn else self
        return {**plain.__dict__, "was_packed": self.weight.is_mkldnn}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state, and pack the weight again if it was packed."""
        was_packed = state.pop("was_packed")
        super().__setstate__(state)
        if was_packed:
            self.pack()


class FusedConvolution(nn.Module):
    """A convolution with its activation."""

    def __init__(self, convolution: nn.Conv2d, activation: Activation = "none") -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        stride, padding, dilation = convolution.stride, convolution.padding, convolution.dilation
        assert not isinstance(padding, str)
        self.steps = list(stride), list(padding), list(dilation), convolution.groups
        self.activation: Activation = activation
        self.pad: nn.Module = nn.Identity()
        if isinstance(convolution, SameConvolution):
            self.pad = SamePadding(pair_of(convolution.kernel_size), pair_of(stride), pair_of(dilation))

    def forward(
        self, maps: Float[Tensor, "batch _in_channels _height _width"]
    ) -> Float[Tensor, "batch _channels _rows _columns"]:
        """Return the maps, convolved and activated."""
        return convolve(self.pad(maps), self.weight, self.bias, self.steps, self.activation)

    def add_to(
        self,
        others: Float[Tensor, "batch channels rows columns"],
        maps: Float[Tensor, "batch _in_channels _height _width"],
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return the sum of `others` and the convolved maps, activated; may modify `others` in place."""
        return convolve(self.pad(maps), self.weight, self.bias, self.steps, self.activation, others)


class FusedResidual(nn.Module):
    """A residual block: a sequence of convolutions, and a shortcut that is added before the last activation.

    May modify its input in place.
    """

    def __init__(self, convolutions: Sequence[FusedConvolution], shortcut: nn.Module) -> None:
        super().__init__()
        *first, self.last = convolutions
        self.first = nn.Sequential(*first)
        self.shortcut = shortcut

    def forward(
        self, maps: Float[Tensor, "batch _in_channels _height _width"]
    ) -> Float[Tensor, "batch _channels _rows _columns"]:
        """Return the maps after the block."""
        found = self.first(maps)
        return self.last.add_to(self.shortcut(maps), found)

"""Small building blocks: convolutions, stochastic depth, multilayer perceptron, constant embedding."""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

NORM_GROUPS = 32


def pointwise_convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 1x1 convolution, initialised as in detectron2: uniform in +-sqrt(3 / in_channels), bias 0."""
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=True)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    nn.init.constant_(convolution.get_parameter("bias"), 0)
    return convolution


class NormedConvolution(nn.Module):
    """A convolution with padding that keeps the size, group normalisation (32 groups), and an activation."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool, activation: nn.Module
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)
        self.activation = activation

    def forward(
        self, maps: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels height width"]:
        """Return maps of the same size."""
        result: Tensor = self.activation(self.norm(self.convolution(maps)))
        return result


class DropPath(nn.Module):
    """Stochastic depth: in training, drop the residual branch of each image with probability `rate`.

    Branches that are kept are divided by the probability of being kept.

    Source: Huang et al., Deep Networks with Stochastic Depth (1603.09382), Sec. 3.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_prob = rate

    def forward(self, branch: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """Return the branch, with zeros for the images whose branch is dropped."""
        if not self.training or self.drop_prob == 0:
            return branch
        stays = branch.new_empty((len(branch),) + (1,) * (branch.ndim - 1)).bernoulli_(1 - self.drop_prob)
        return branch * stays.div_(1 - self.drop_prob)


class Perceptron(nn.Module):
    """A multilayer perceptron: linear layers with an activation between them."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ) -> None:
        super().__init__()
        self.activation = activation
        widths = [in_channels] + [hidden_channels] * (num_layers - 1) + [out_channels]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, inputs: Float[Tensor, "*batch in_channels"]) -> Float[Tensor, "*batch out_channels"]:
        """Return the last layer's output, without activation."""
        for layer in self.layers[:-1]:
            inputs = self.activation(layer(inputs))
        return self.layers[-1](inputs)


class ConstantEmbedding(nn.Module):
    """Zeros in place of the weight of an `nn.Embedding`; neither learned nor saved in checkpoints."""

    weight: Tensor

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(count, channels), persistent=False)

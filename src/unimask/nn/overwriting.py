"""Layers for inference on the CPU that may write over their input: allocating a large map costs page faults.

`models/optimize.py` substitutes them for plain layers whose input is not needed afterwards. They are not
differentiable.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from unimask.nn.attention import DeformableAttention, Levels
from unimask.nn.fused import FusedConvolution, FusedLinear
from unimask.nn.transformer import EncoderLayer
from unimask.ops.cpu.norms import CELLS_AT_ONCE, overwrite_with_group_norm
from unimask.ops.cpu.winograd import transform_kernel, winograd_convolution, winograd_serves
from unimask.ops.deformable.cpu import BagReader
from unimask.ops.parts import token_over_token


class OverwritingGroupNorm(nn.Module):
    """Group normalisation, in place where the maps are float32 in the memory format channels_last."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the normalised maps."""
        in_order = maps.is_contiguous(memory_format=torch.channels_last) and maps.numel() > 0
        norm = self.norm
        if in_order and maps.dtype == torch.float32:
            return overwrite_with_group_norm(maps, norm.num_groups, norm.weight, norm.bias, norm.eps)
        normalised: Tensor = norm(maps)
        return normalised


class OverwritingMix(nn.Module):
    """A 1x1 convolution with as many output as input channels, written over its input."""

    def __init__(self, convolution: FusedConvolution) -> None:
        super().__init__()
        self.matrix = nn.Parameter(convolution.weight.flatten(1), requires_grad=False)
        self.bias = convolution.bias

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the convolved maps."""
        maps = maps.to(self.matrix.dtype).contiguous(memory_format=torch.channels_last)
        for part in maps.permute(0, 2, 3, 1).flatten(0, 2).split(CELLS_AT_ONCE):
            part.copy_(functional.linear(part, self.matrix, self.bias))
        return maps


class OverwritingUpscaling(nn.Module):
    """The upscaling of an EoMT to maps of twice the size, with the norm computed in place.

    The transposed 2x2 convolution is a matrix product fused with its activation, for a few cells at a time.
    """

    def __init__(self, expand: nn.ConvTranspose2d, mix: nn.Conv2d, norm: nn.LayerNorm) -> None:
        super().__init__()
        assert expand.bias is not None
        weight = expand.weight.detach().permute(2, 3, 1, 0).flatten(0, 2)
        self.expand = FusedLinear(weight, expand.bias.detach().repeat(4))
        self.expand.activation = "gelu"
        self.expand.pack()
        self.mix = FusedConvolution(mix)
        self.norm = norm

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels 2*height 2*width"]:
        """Return maps of twice the size."""
        batch, channels, height, width = maps.shape
        cells = maps.permute(0, 2, 3, 1).to(self.mix.weight.dtype)
        doubled = cells.new_empty((batch, height, 2, width, 2 * channels))
        rows = max(1, CELLS_AT_ONCE // (4 * batch * width))
        for some, out in zip(cells.split(rows, dim=1), doubled.split(rows, dim=1), strict=True):
            out.copy_(self.expand(some).unflatten(-1, (2, -1)).transpose(2, 3))
        doubled = doubled.view(batch, 2 * height, 2 * width, channels)
        mixed: Tensor = self.mix(doubled.permute(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
        for part in mixed.permute(0, 2, 3, 1).flatten(0, 2).split(CELLS_AT_ONCE):
            part.copy_(self.norm(part))
        return mixed


class WinogradConvolution(nn.Module):
    """A 3x3 convolution of many channels with fewer multiplications (`ops/cpu/winograd.py`)."""

    kernel: Tensor

    def __init__(self, convolution: FusedConvolution, *, overwrite: bool) -> None:
        super().__init__()
        self.register_buffer("kernel", transform_kernel(convolution.weight.detach()), persistent=False)
        self.bias = convolution.bias
        self.overwrite = overwrite

    def forward(
        self, maps: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch _channels height width"]:
        """Return the convolved maps."""
        maps = maps.contiguous(memory_format=torch.channels_last)
        return winograd_convolution(maps, self.kernel, self.bias, overwrite=self.overwrite)


def fastest(
    convolution: FusedConvolution, *, overwrite: bool
) -> FusedConvolution | OverwritingMix | WinogradConvolution:
    """Return a convolution in its fastest CPU version; with `overwrite` it may write over its input."""
    if convolution.activation != "none":
        return convolution
    if winograd_serves(convolution.weight, convolution.steps):
        return WinogradConvolution(convolution, overwrite=overwrite)
    channels, in_channels, *kernel = convolution.weight.shape
    pointwise = kernel == [1, 1] and convolution.steps == ([1, 1], [0, 0], [1, 1], 1)
    return OverwritingMix(convolution) if overwrite and pointwise and channels == in_channels else convolution


class OverwritingEncoderLayer(nn.Module):
    """An encoder layer with deformable attention that computes the whole layer for a few tokens at a time.

    The values are first projected into the table of a `BagReader`, so the tokens may be written over.
    """

    def __init__(self, layer: EncoderLayer, attention: DeformableAttention) -> None:
        super().__init__()
        self.layer = layer
        self.attention = attention

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens channels"],
        positions: Float[Tensor, "#batch tokens channels"],
        levels: Levels,
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the tokens after the layer; may modify `tokens` in place."""
        attention, residual = self.attention, self.layer.attention_residual
        values, points = residual.prepare(tokens), attention.shape[2]
        sample = BagReader(values, attention.project, levels.sizes, points, levels.places.dtype)
        attend = partial(attention.attend, cells=levels.cells, sample=sample)

        def refine(some: Tensor, positions: Tensor, places: Tensor) -> Tensor:
            update = attend(residual.prepare(some) + positions, places[0])
            return self.layer.feed(residual(some, update))

        return token_over_token(refine, tokens, positions, levels.places[None])

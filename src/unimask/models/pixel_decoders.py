"""From the backbone's maps to the memory of the query decoder and to mask features."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from unimask.models.transformer_encoder import TransformerEncoder
from unimask.nn.attention import DeformableAttention, Levels
from unimask.nn.layers import NormedConvolution, pointwise_convolution
from unimask.nn.transformer import EncoderLayer
from unimask.ops.positions import cell_centers, fourier_positions, sine_positions
from unimask.structures import Size

MASK_STRIDE = 4

bilinear = partial(functional.interpolate, mode="bilinear", align_corners=False)
nearest = partial(functional.interpolate, mode="nearest")


class DeformableEncoder(nn.Module):
    """Encoder layers with deformable self-attention over all cells of all levels.

    Each level has an embedding, added to the sine positions of its cells. Padding of the canvas takes part
    like any other pixel, as in the original.

    Source: Deformable DETR (2010.04159), Sec. 4.2.
    """

    def __init__(self, layers: Sequence[EncoderLayer], channels: int, levels: int) -> None:
        super().__init__()
        self.level_embedding = nn.Parameter(torch.randn(levels, channels))
        self.layers = nn.ModuleList(layers)

    def forward(
        self, maps: Sequence[Float[Tensor, "batch channels _height _width"]]
    ) -> list[Float[Tensor, "batch channels _height _width"]]:
        """Return the refined maps, in the same order and sizes; the order is that of the level embedding."""
        sizes = tuple((level.shape[2], level.shape[3]) for level in maps)
        tokens = torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2).contiguous()
        levels, positions = self._places(sizes, tokens)
        for layer in self.layers:
            tokens = layer(tokens, positions, levels)
        cells = [height * width for height, width in sizes]
        refined = tokens.transpose(1, 2).split(cells, dim=2)
        return [level.unflatten(2, size) for level, size in zip(refined, sizes, strict=True)]

    def _places(self, sizes: tuple[Size, ...], tokens: Tensor) -> tuple[Levels, Tensor]:
        """Return where the tokens are: for sampling, and as vectors (1, tokens, channels)."""
        device, dtype = tokens.device, torch.promote_types(tokens.dtype, torch.float32)
        embeddings = self.level_embedding.unbind()
        positions = [
            sine_positions(*size, tokens.shape[2], device=device, dtype=dtype).flatten(0, 1).add_(embedding)
            for size, embedding in zip(sizes, embeddings, strict=True)
        ]
        places = torch.cat([cell_centers(*size, device=device, dtype=dtype) for size in sizes])
        # filled on the device: a copy from the host would make it wait, and cannot be part of a CUDA graph
        cells = torch.cat(
            [places.new_full((1,), side) for height, width in sizes for side in (width, height)]
        )
        levels = Levels(sizes=sizes, places=places, cells=cells.unflatten(0, (-1, 2)))
        return levels, torch.cat(positions)[None]


class DeformablePixelDecoder(nn.Module):
    """A deformable encoder over the low-resolution maps, and a feature pyramid from there up to stride 4.

    Source: Mask2Former, Sec. 3.2.2 and Sec. 4.1 ("pixel decoder").
    """

    def __init__(
        self,
        *,
        in_channels: Mapping[int, int],  # stride -> channels of the backbone's map
        strides: Sequence[int],  # of the maps that the encoder refines, from low to high resolution
        channels: int,
        mask_channels: int,
        layers: int,
        heads: int,
        points: int,
        feedforward_channels: int,
        dropout: float = 0.0,
        mask_positions: nn.Module,  # adds places to the mask features; an identity in the paper
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        pyramid = [s for s in sorted(in_channels, reverse=True) if MASK_STRIDE <= s < min(strides)]
        self.projections = nn.ModuleDict({str(s): _projection(in_channels[s], channels) for s in strides})
        encoder_layers = [
            EncoderLayer(
                DeformableAttention(channels, heads, len(strides), points),
                channels,
                feedforward_channels,
                dropout,
            )
            for _ in range(layers)
        ]
        self.encoder = DeformableEncoder(encoder_layers, channels, len(strides))
        self.laterals = nn.ModuleDict({str(s): _lateral(in_channels[s], channels) for s in pyramid})
        self.fusions = nn.ModuleDict({str(s): _fusion(channels, channels) for s in pyramid})
        self.mask_features = pointwise_convolution(channels, mask_channels)
        self.mask_positions = mask_positions

    def forward(
        self, features: Mapping[int, Float[Tensor, "batch _channels _height _width"]]
    ) -> tuple[dict[int, Tensor], Float[Tensor, "batch mask_channels height width"]]:
        """Return the refined maps by stride (all but stride 4), and the mask features at stride 4."""
        maps = self.encoder([self.projections[str(stride)](features[stride]) for stride in self.strides])
        memory = dict(zip(self.strides, maps, strict=True))
        # without it PyTorch resizes to another memory order than that of the convolutions around
        coarse = memory[min(self.strides)].clone(memory_format=torch.channels_last)
        memory |= climb(coarse, features, self.laterals, self.fusions, bilinear)
        mask_features = self.mask_features(memory.pop(MASK_STRIDE))
        return memory, self.mask_positions(mask_features)


class EncodedMap(nn.Module):
    """A map of the backbone, brought to the encoder's width and refined by it; sine positions, no padding.

    Source: DETR (2005.12872), Sec. 3.2; MaskFormer (2107.06278), Sec. 4.1, for panoptic segmentation.
    """

    def __init__(self, projection: nn.Module, encoder: TransformerEncoder) -> None:
        super().__init__()
        self.projection = projection
        self.encoder = encoder

    def forward(
        self, maps: Float[Tensor, "batch _channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the refined map, of the same size."""
        maps = self.projection(maps)
        _, channels, height, width = maps.shape
        precise = torch.promote_types(maps.dtype, torch.float32)
        positions = sine_positions(height, width, channels, device=maps.device, dtype=precise)
        refined: Tensor = self.encoder(maps, positions.flatten(0, 1)[None])
        return refined


class PyramidPixelDecoder(nn.Module):
    """A feature pyramid from the coarsest map up to stride 4: MaskFormer's pixel decoder.

    `encoder` refines the coarsest map before (an identity where nothing does), to `encoded_channels`; the
    memory at that stride is what it gives, not what the pyramid makes of it.

    Source: MaskFormer (2107.06278), Sec. 4.1; Feature Pyramid Networks (1612.03144), Sec. 3.
    """

    def __init__(
        self,
        *,
        in_channels: Mapping[int, int],  # stride -> channels of the backbone's map
        encoder: nn.Module,
        encoded_channels: int,
        channels: int,
        mask_channels: int,
        mask_positions: nn.Module,  # adds places to the mask features; an identity in the paper
    ) -> None:
        super().__init__()
        self.coarsest, *others = sorted(in_channels, reverse=True)
        pyramid = [stride for stride in others if stride >= MASK_STRIDE]
        self.encoder = encoder
        self.entry = _fusion(encoded_channels, channels)
        self.laterals = nn.ModuleDict({str(s): _lateral(in_channels[s], channels) for s in pyramid})
        self.fusions = nn.ModuleDict({str(s): _fusion(channels, channels) for s in pyramid})
        self.mask_features = nn.Conv2d(channels, mask_channels, 3, padding=1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        nn.init.constant_(self.mask_features.get_parameter("bias"), 0)
        self.mask_positions = mask_positions

    def forward(
        self, features: Mapping[int, Float[Tensor, "batch _channels _height _width"]]
    ) -> tuple[dict[int, Tensor], Float[Tensor, "batch mask_channels height width"]]:
        """Return the memory by stride (the encoded map and the pyramid's above 4) and the mask features."""
        encoded = self.encoder(features[self.coarsest])
        finer = climb(self.entry(encoded), features, self.laterals, self.fusions, nearest)
        mask_features = self.mask_positions(self.mask_features(finer.pop(MASK_STRIDE)))
        return {self.coarsest: encoded, **finer}, mask_features


def climb(
    coarse: Float[Tensor, "batch channels _height _width"],
    features: Mapping[int, Float[Tensor, "batch _channels _height _width"]],
    laterals: nn.ModuleDict,
    fusions: nn.ModuleDict,
    resize: Callable[[Tensor, torch.Size], Tensor],
) -> dict[int, Float[Tensor, "batch channels _height _width"]]:
    """Return the maps of a feature pyramid by stride, from a coarse map upwards, in the order of `laterals`.

    Source: Feature Pyramid Networks (1612.03144), Sec. 3, with a norm after every convolution.
    """
    maps = {}
    for stride, lateral in laterals.items():
        coarse = _joined(coarse, lateral(features[int(stride)]), resize)
        coarse = fusions[stride](coarse)
        maps[int(stride)] = coarse
    return maps


def _joined(
    coarse: Float[Tensor, "batch channels _height _width"],
    across: Float[Tensor, "batch channels height width"],
    resize: Callable[[Tensor, torch.Size], Tensor],
) -> Float[Tensor, "batch channels height width"]:
    """Return the sum of two maps at the size of the second."""
    return resize(coarse, across.shape[2:]).add_(across)


class MapPositions(nn.Module):
    """Adds to each cell of a map a learned vector of its place.

    A mask is where the features fit the query's embedding. Features that hold only content fit wherever the
    same content is, so objects that look alike are hard to tell apart; those that hold their place need no
    context for it. At first nothing is added.

    Source: K-Net (2106.14855), Sec. 3.4 and SOLO (1912.04488), Sec. 3.2 give masks positions for this reason,
    in other forms.
    """

    def __init__(self, octaves: int, channels: int) -> None:
        super().__init__()
        self.octaves = octaves
        self.projection = nn.Conv2d(4 * octaves, channels, 1, bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the maps with their places."""
        precise = torch.promote_types(maps.dtype, torch.float32)
        places = fourier_positions(
            maps.shape[2], maps.shape[3], self.octaves, device=maps.device, dtype=precise
        )
        return maps + self.projection(places[None])


def _projection(in_channels: int, channels: int) -> NormedConvolution:
    """From a map of the backbone to the encoder."""
    projection = NormedConvolution(in_channels, channels, 1, bias=True, activation=nn.Identity())
    nn.init.xavier_uniform_(projection.convolution.weight)
    nn.init.constant_(projection.convolution.get_parameter("bias"), 0)
    return projection


def _lateral(in_channels: int, channels: int) -> NormedConvolution:
    """From a map of the backbone into the feature pyramid."""
    lateral = NormedConvolution(in_channels, channels, 1, bias=False, activation=nn.Identity())
    nn.init.kaiming_uniform_(lateral.convolution.weight, a=1)
    return lateral


def _fusion(in_channels: int, channels: int) -> NormedConvolution:
    """Return what follows the sum of a lateral and the coarser map, or the coarsest map alone."""
    fusion = NormedConvolution(in_channels, channels, 3, bias=False, activation=nn.ReLU(inplace=True))
    nn.init.kaiming_uniform_(fusion.convolution.weight, a=1)
    return fusion

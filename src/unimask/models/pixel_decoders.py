"""Pixel decoders: compute the memory of the query decoder and the mask features from the backbone's maps."""

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

    Each level has an embedding, which is added to the sine positions of its cells. Padding of the canvas is
    treated like any other pixel, as in the original.

    Source: Deformable DETR (2010.04159), Sec. 4.2.
    """

    def __init__(self, layers: Sequence[EncoderLayer], channels: int, levels: int) -> None:
        super().__init__()
        self.level_embedding = nn.Parameter(torch.randn(levels, channels))
        self.layers = nn.ModuleList(layers)

    def forward(
        self, maps: Sequence[Float[Tensor, "batch channels _height _width"]]
    ) -> list[Float[Tensor, "batch channels _height _width"]]:
        """Return the refined maps, in the same order and sizes; the order must be that of the embeddings."""
        sizes = tuple((level.shape[2], level.shape[3]) for level in maps)
        tokens = torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2).contiguous()
        levels, positions = self._places(sizes, tokens)
        for layer in self.layers:
            tokens = layer(tokens, positions, levels)
        cells = [height * width for height, width in sizes]
        refined = tokens.transpose(1, 2).split(cells, dim=2)
        return [level.unflatten(2, size) for level, size in zip(refined, sizes, strict=True)]

    def _places(self, sizes: tuple[Size, ...], tokens: Tensor) -> tuple[Levels, Tensor]:
        """Return the locations of the tokens for sampling, and their positions (1, tokens, channels)."""
        device, dtype = tokens.device, torch.promote_types(tokens.dtype, torch.float32)
        embeddings = self.level_embedding.unbind()
        positions = [
            sine_positions(*size, tokens.shape[2], device=device, dtype=dtype).flatten(0, 1).add_(embedding)
            for size, embedding in zip(sizes, embeddings, strict=True)
        ]
        places = torch.cat([cell_centers(*size, device=device, dtype=dtype) for size in sizes])
        # filled on the device: a copy from the host would synchronise, and cannot be part of a CUDA graph
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
        mask_positions: nn.Module,  # such as `MapPositions`; the identity in the paper
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
        """Return the memory (stride -> map, strides above 4) and the mask features at stride 4."""
        maps = self.encoder([self.projections[str(stride)](features[stride]) for stride in self.strides])
        memory = dict(zip(self.strides, maps, strict=True))
        # otherwise the resized map would not have the memory format of the convolutions around it
        coarse = memory[min(self.strides)].clone(memory_format=torch.channels_last)
        memory |= climb(coarse, features, self.laterals, self.fusions, bilinear)
        mask_features = self.mask_features(memory.pop(MASK_STRIDE))
        return memory, self.mask_positions(mask_features)


class EncodedMap(nn.Module):
    """Projects a map of the backbone and refines it with a transformer encoder; padding is not masked.

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
    """MaskFormer's pixel decoder: a feature pyramid from the coarsest map up to stride 4.

    `encoder` first refines the coarsest map; its result has `encoded_channels`, and is also the memory at
    that stride. The identity stands for no encoder.

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
        mask_positions: nn.Module,  # such as `MapPositions`; the identity in the paper
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
        """Return the memory (stride -> map, strides above 4) and the mask features at stride 4."""
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
    """Return the maps of a feature pyramid, stride -> map, from `coarse` on in the order of `laterals`.

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
    """Return `coarse`, resized to the size of `across`, plus `across`."""
    return resize(coarse, across.shape[2:]).add_(across)


class MapPositions(nn.Module):
    """Adds a learned projection of Fourier features of the position to each cell of a map.

    Mask features without positions match a query's embedding wherever the content is similar, so similar
    objects are hard to separate. With positions they can be separated without context. The projection is
    initialised with zeros.

    Source: the purpose is that of K-Net (2106.14855), Sec. 3.4 and SOLO (1912.04488), Sec. 3.2, which add
    positions in other forms.
    """

    def __init__(self, octaves: int, channels: int) -> None:
        super().__init__()
        self.octaves = octaves
        self.projection = nn.Conv2d(4 * octaves, channels, 1, bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the maps plus the projected positions."""
        precise = torch.promote_types(maps.dtype, torch.float32)
        places = fourier_positions(
            maps.shape[2], maps.shape[3], self.octaves, device=maps.device, dtype=precise
        )
        return maps + self.projection(places[None])


def _projection(in_channels: int, channels: int) -> NormedConvolution:
    """Return the projection of a map of the backbone for the encoder."""
    projection = NormedConvolution(in_channels, channels, 1, bias=True, activation=nn.Identity())
    nn.init.xavier_uniform_(projection.convolution.weight)
    nn.init.constant_(projection.convolution.get_parameter("bias"), 0)
    return projection


def _lateral(in_channels: int, channels: int) -> NormedConvolution:
    """Return the lateral connection from a map of the backbone into the feature pyramid."""
    lateral = NormedConvolution(in_channels, channels, 1, bias=False, activation=nn.Identity())
    nn.init.kaiming_uniform_(lateral.convolution.weight, a=1)
    return lateral


def _fusion(in_channels: int, channels: int) -> NormedConvolution:
    """Return the 3x3 convolution of a feature pyramid after each sum, or after the coarsest map."""
    fusion = NormedConvolution(in_channels, channels, 3, bias=False, activation=nn.ReLU(inplace=True))
    nn.init.kaiming_uniform_(fusion.convolution.weight, a=1)
    return fusion

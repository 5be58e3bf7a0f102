"""Builds models with random weights from their configs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast, overload

from torch import nn

from unimask.config.models import DetrConfig, EomtConfig, ModelConfig, PixelDecoderConfig, QueryDecoderConfig
from unimask.config.values import check_divisible, check_values
from unimask.errors import ConfigError
from unimask.models.backbones import build_backbone
from unimask.models.build_eomt import build_eomt
from unimask.models.detr import Detr, with_positions, without_positions
from unimask.models.detr_masks import GROUPS, DetrWithMasks, MaskPyramid, QueryAttentionMaps
from unimask.models.eomt import Eomt
from unimask.models.heads import BoxHeads, MaskHeads
from unimask.models.mask_classifier import MaskClassifier
from unimask.models.per_pixel import CategoryEmbeddings, CategoryHeads
from unimask.models.pixel_decoders import (
    MASK_STRIDE,
    DeformablePixelDecoder,
    EncodedMap,
    MapPositions,
    PyramidPixelDecoder,
)
from unimask.models.query_decoder import QueryDecoder, full_visibility, masked_visibility
from unimask.models.transformer_encoder import TransformerEncoder, encoder_layer
from unimask.nn.attention import Attention
from unimask.nn.layers import NORM_GROUPS, ConstantEmbedding, pointwise_convolution
from unimask.nn.transformer import (
    CrossSublayer,
    DecoderLayer,
    FeedForward,
    FeedForwardSublayer,
    Residual,
    SelfSublayer,
)

ENCODER_INPUT = {"attention": without_positions, "input_and_attention": with_positions}
VISIBILITY = {"masked": masked_visibility, "full": full_visibility}


Model = MaskClassifier | Eomt | Detr | DetrWithMasks
"""The segmentation and detection models; each takes normalised pixels and a mask of the valid ones."""


@overload
def build_model(config: ModelConfig, num_classes: int) -> MaskClassifier: ...


@overload
def build_model(config: EomtConfig, num_classes: int) -> Eomt: ...


@overload
def build_model(config: DetrConfig, num_classes: int) -> Detr | DetrWithMasks: ...


def build_model(config: ModelConfig | EomtConfig | DetrConfig, num_classes: int) -> Model:
    """Return a model with random weights for `num_classes` classes (and no-object).

    Raises:
        ConfigError: a value is out of its range, numbers of channels are not divisible as they must be, or a
            stride does not exist.
    """
    if isinstance(config, DetrConfig):
        return build_detr(config, num_classes)
    if isinstance(config, EomtConfig):
        return build_eomt(config, num_classes)
    return build_mask_classifier(config, num_classes)


def build_mask_classifier(config: ModelConfig, num_classes: int) -> MaskClassifier:
    """Return a Mask2Former, one of its ablations, a MaskFormer, or a per-pixel baseline.

    Raises:
        ConfigError: see `build_model`.
    """
    backbone = build_backbone(config.backbone)
    in_channels = cast(dict[int, int], backbone.channels)
    pixel_decoder = build_pixel_decoder(config.pixel_decoder, in_channels)
    memory = memory_channels(config.pixel_decoder, in_channels)
    mask_channels = config.pixel_decoder.mask_channels
    build = {"masks": build_query_decoder, "pixels": build_pixel_classifier}[config.classification]
    query_decoder = build(config.query_decoder, memory, mask_channels, num_classes)
    return MaskClassifier(
        backbone,
        pixel_decoder,
        query_decoder,
        VISIBILITY[config.query_decoder.visibility],
        per_pixel=config.classification == "pixels",
    )


def memory_channels(config: PixelDecoderConfig, in_channels: Mapping[int, int]) -> dict[int, int]:
    """Return the channels of the memory from the pixel decoder: stride -> channels, low resolution first.

    The strides are those that the encoder refines, and the finer ones above stride 4. At its coarsest stride,
    a pyramid without an encoder returns the backbone's map itself.
    """
    refined = dict.fromkeys(config.strides, config.channels)
    finer = {stride: config.channels for stride in in_channels if MASK_STRIDE < stride < min(config.strides)}
    raw = {s: in_channels[s] for s in config.strides if config.kind == "pyramid" and config.layers == 0}
    return dict(sorted((refined | finer | raw).items(), reverse=True))


def build_pixel_decoder(
    config: PixelDecoderConfig, in_channels: Mapping[int, int]
) -> DeformablePixelDecoder | PyramidPixelDecoder:
    """Return the pixel decoder for a backbone with `in_channels` (stride -> channels).

    Raises:
        ConfigError: see `build_model`.
    """
    path = "model.pixel_decoder"
    check_values(config, path)
    check_divisible(config.channels, NORM_GROUPS, f"{path}.channels", "groups of its norms")
    check_divisible(config.channels, config.heads, f"{path}.channels", "heads")
    _check_strides(config.strides, in_channels, f"{path}.strides", "the backbone gives")
    octaves = config.position_octaves
    mask_positions = MapPositions(octaves, config.mask_channels) if octaves else nn.Identity()
    kinds: dict[str, Callable[..., DeformablePixelDecoder | PyramidPixelDecoder]] = {
        "deformable": _deformable_decoder,
        "pyramid": _pyramid_decoder,
    }
    return kinds[config.kind](config, in_channels, mask_positions)


def _deformable_decoder(
    config: PixelDecoderConfig, in_channels: Mapping[int, int], mask_positions: nn.Module
) -> DeformablePixelDecoder:
    return DeformablePixelDecoder(
        in_channels=in_channels,
        strides=config.strides,
        channels=config.channels,
        mask_channels=config.mask_channels,
        layers=config.layers,
        heads=config.heads,
        points=config.points,
        feedforward_channels=config.feedforward_channels,
        dropout=config.dropout,
        mask_positions=mask_positions,
    )


def _pyramid_decoder(
    config: PixelDecoderConfig, in_channels: Mapping[int, int], mask_positions: nn.Module
) -> PyramidPixelDecoder:
    path = "model.pixel_decoder"
    coarsest = max(in_channels)
    if config.strides != (coarsest,):
        reason = f"a pyramid's encoder refines the coarsest map only, ({coarsest},); got {config.strides}"
        raise ConfigError(f"{path}.strides", reason)
    check_divisible(config.channels, 4, f"{path}.channels", "parts of a sine position")
    encoder: nn.Module = nn.Identity()
    if config.layers:
        projection = pointwise_convolution(in_channels[coarsest], config.channels)
        size = config.channels, config.heads, config.feedforward_channels, config.dropout
        encoder = EncodedMap(
            projection, TransformerEncoder([encoder_layer(*size) for _ in range(config.layers)])
        )
    return PyramidPixelDecoder(
        in_channels=in_channels,
        encoder=encoder,
        encoded_channels=memory_channels(config, in_channels)[coarsest],
        channels=config.channels,
        mask_channels=config.mask_channels,
        mask_positions=mask_positions,
    )


def build_query_decoder(
    config: QueryDecoderConfig, memory_channels: Mapping[int, int], mask_channels: int, num_classes: int
) -> QueryDecoder:
    """Return the query decoder of a mask classifier, for memory with `memory_channels` (stride -> channels).

    Raises:
        ConfigError: see `build_model`.
    """
    return _decoder_on_pixels(config, memory_channels, MaskHeads(config.channels, mask_channels, num_classes))


def build_pixel_classifier(
    config: QueryDecoderConfig, memory_channels: Mapping[int, int], mask_channels: int, num_classes: int
) -> QueryDecoder | CategoryEmbeddings:
    """Return the classifier of a per-pixel baseline: linear, or a query decoder with a query per category.

    Raises:
        ConfigError: see `build_model`.
    """
    if config.layers == 0:
        return CategoryEmbeddings(num_classes, mask_channels)
    config = replace(config, queries=num_classes)
    heads = CategoryHeads(config.channels, mask_channels, num_classes)
    return _decoder_on_pixels(config, memory_channels, heads)


def _decoder_on_pixels(
    config: QueryDecoderConfig, memory_channels: Mapping[int, int], heads: nn.Module
) -> QueryDecoder:
    """Return the query decoder for a pixel decoder, with these heads."""
    path = "model.query_decoder"
    _check_transformer(config, path)
    _check_strides(
        config.memory_strides, memory_channels, f"{path}.memory_strides", "the pixel decoder gives"
    )
    if config.layers < 1:
        raise ConfigError(f"{path}.layers", f"must be at least 1; got {config.layers}")
    return _query_decoder(config, memory_channels, heads, path)


def build_detr(config: DetrConfig, num_classes: int) -> Detr | DetrWithMasks:
    """Return a DETR, with the mask head if `config.mask_head` is set.

    Raises:
        ConfigError: see `build_model`.
    """
    _check_transformer(config, "model")
    backbone = build_backbone(config.backbone)
    in_channels = cast(dict[int, int], backbone.channels)
    sizes = (config.channels, config.heads, config.feedforward_channels, config.dropout)
    decoder = QueryDecoderConfig(
        queries=config.queries,
        channels=config.channels,
        heads=config.heads,
        feedforward_channels=config.feedforward_channels,
        layers=config.decoder_layers,
        dropout=config.dropout,
        memory_strides=(config.stride,),
        level_embedding=False,
        visibility="full",
        order=("self", "cross", "feedforward"),
        query_features="zeros",
        predict_before_layers=False,
    )
    memory: dict[int, int] = {config.stride: config.channels}
    detr = Detr(
        backbone,
        nn.Conv2d(in_channels[config.stride], config.channels, 1),
        TransformerEncoder([encoder_layer(*sizes) for _ in range(config.encoder_layers)]),
        _query_decoder(decoder, memory, BoxHeads(config.channels, num_classes), "model"),
        ENCODER_INPUT[config.positions],
    )
    if not config.mask_head:
        return detr
    check_divisible(config.channels + config.heads, GROUPS, "model.channels", "groups of the mask head")
    check_divisible(config.channels, 16 * GROUPS, "model.channels", "groups of the mask head's last norm")
    pyramid = MaskPyramid(
        channels=config.channels,
        heads=config.heads,
        widest=config.channels,
        in_channels=tuple(in_channels[stride] for stride in (16, 8, 4) if stride < config.stride),
    )
    return DetrWithMasks(detr, QueryAttentionMaps(config.channels, config.heads), pyramid)


def _query_decoder(
    config: QueryDecoderConfig, memory_channels: Mapping[int, int], heads: nn.Module, path: str
) -> QueryDecoder:
    """Return the query decoder with these heads."""
    make_features = {"learned": nn.Embedding, "zeros": ConstantEmbedding}[config.query_features]
    make_level = {True: nn.Embedding, False: ConstantEmbedding}[config.level_embedding]
    return QueryDecoder(
        layers=[_decoder_layer(config, path) for _ in range(config.layers)],
        heads=heads,
        projections={s: _projection(memory_channels[s], config.channels) for s in config.memory_strides},
        query_features=make_features(config.queries, config.channels),
        query_positions=nn.Embedding(config.queries, config.channels),
        level_embedding=make_level(len(config.memory_strides), config.channels),
        channels=config.channels,
        predict_before_layers=config.predict_before_layers,
    )


def _decoder_layer(config: QueryDecoderConfig, path: str) -> DecoderLayer:
    """Return a layer with its sublayers in the configured order, on which parameter names do not depend."""
    if sorted(config.order) != ["cross", "feedforward", "self"]:
        raise ConfigError(f"{path}.order", f"names each of cross, self, feedforward once, not {config.order}")
    channels, heads, dropout = config.channels, config.heads, config.dropout
    sublayers: dict[str, nn.Module] = {
        "cross": CrossSublayer(Attention(channels, heads, dropout), Residual(channels, dropout)),
        "self": SelfSublayer(Attention(channels, heads, dropout), Residual(channels, dropout)),
        "feedforward": FeedForwardSublayer(
            FeedForward(channels, config.feedforward_channels, dropout), Residual(channels, dropout)
        ),
    }
    return DecoderLayer({name: sublayers[name] for name in config.order})


def _projection(in_channels: int, out_channels: int) -> nn.Module:
    """Return the projection of memory to the decoder's channels: the identity if they are equal."""
    if in_channels == out_channels:
        return nn.Identity()
    return pointwise_convolution(in_channels, out_channels)


def _check_transformer(config: QueryDecoderConfig | DetrConfig, path: str) -> None:
    check_values(config, path)
    check_divisible(config.channels, config.heads, f"{path}.channels", "heads")
    check_divisible(config.channels, 4, f"{path}.channels", "parts of a sine position")


def _check_strides(strides: tuple[int, ...], given: Mapping[int, int], path: str, who: str) -> None:
    unknown = [stride for stride in strides if stride not in given]
    if unknown or not strides or len(set(strides)) < len(strides):
        raise ConfigError(
            path, f"{strides} must be different strides out of those that {who}: {sorted(given)}"
        )

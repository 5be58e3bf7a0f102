"""The architecture of a model, inferred from the names and shapes of its tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from unimask.config.models import (
    BackboneConfig,
    DetrConfig,
    ModelConfig,
    PixelDecoderConfig,
    QueryDecoderConfig,
)
from unimask.errors import WeightsError
from unimask.models.backbones import STRIDES, SWINS, SwinShape
from unimask.presets.maskformer import maskformer_model

Channels = tuple[float, float, float]

SWIN_DROP_PATH_RATE = 0.3  # of the papers

HEADS = 8  # of attention in every published MaskFormer and DETR, which no tensor shows

POINTS = 4  # of deformable attention, fixed in the original and in transformers

RESNETS: Mapping[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
    (3, 24, 36, 3): "resnet200",
    (2, 2, 2, 2): "resnet26",
}
"""Blocks per stage -> name."""

DEEPLABS: Mapping[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50_deeplab",
    (3, 4, 23, 3): "resnet101_deeplab",
}
"""The same, of ResNets with a stem of three convolutions; the multi-grid leaves no trace."""

MASKS_WITHOUT_TRACE = (
    *(
        f"query_decoder.{name}"
        for name in (
            "memory_strides",
            "level_embedding",
            "visibility",
            "order",
            "query_features",
            "predict_before_layers",
        )
    ),
    *(f"pixel_decoder.{name}" for name in ("strides", "points", "position_octaves")),
    "classification",
)
"""Settings of a mask classifier that names and shapes do not show."""

DETR_WITHOUT_TRACE = ("stride", "positions")
"""Settings of a DETR that names and shapes do not show."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """Settings of a configuration that tensors do not show; the defaults are those of published models."""

    heads: int = 0  # of attention; 0: not stated
    dropout: float = 0.1  # of DETR
    backbone: str = ""  # of DETR, timm's name; empty: inferred from the tensors
    dilated: bool = False  # whether the last stage of DETR's backbone keeps its size
    names: tuple[str, ...] = ()  # of the categories, "" for one that has none; empty: not stated
    image_mean: Channels = BackboneConfig().image_mean
    image_std: Channels = BackboneConfig().image_std
    drop_path_rate: float = SWIN_DROP_PATH_RATE  # stochastic depth of a Swin
    idle_norms_are_frozen: bool = False  # a norm whose counter has counted no batch, in files that have all
    data: Mapping[str, object] = field(default_factory=dict)  # settings of `DataConfig`; empty: not stated
    size: int = 0  # of the square images of an EoMT; 0: not stated
    mask_chances: tuple[float, ...] = ()  # of a query of an EoMT to keep its mask, per block; (): not stated


def infer_mask2former(tensors: Mapping[str, Tensor], stated: Stated, path: Path) -> tuple[ModelConfig, int]:
    """Return the settings of the Mask2Former of these tensors, under our names, and its number of classes.

    The heads of the query decoder leave no trace: they are those of the pixel decoder, as in the original and
    in transformers. The drop path rate of Swin is the paper's.

    Raises:
        WeightsError: no backbone has these shapes, or the stated heads differ from those of the tensors.
        KeyError: a tensor that shows the architecture is missing.
    """
    pixel_decoder = _deformable_decoder(tensors)
    if stated.heads not in (0, pixel_decoder.heads):
        raise WeightsError(
            path,
            f"the tensors are of {pixel_decoder.heads} attention heads, config.json says {stated.heads}",
        )
    queries, channels = tensors["query_decoder.query_features.weight"].shape
    query_decoder = QueryDecoderConfig(
        queries=queries,
        channels=channels,
        heads=pixel_decoder.heads,
        layers=_decoder_layers(tensors),
        feedforward_channels=_decoder_width(tensors),
    )
    backbone = infer_backbone(tensors, stated, path)
    config = ModelConfig(backbone=backbone, pixel_decoder=pixel_decoder, query_decoder=query_decoder)
    return config, _num_classes(tensors)


def infer_maskformer(tensors: Mapping[str, Tensor], stated: Stated, path: Path) -> tuple[ModelConfig, int]:
    """Return the settings of the MaskFormer of these tensors, under our names, and its number of classes.

    Raises:
        WeightsError: no backbone has these shapes.
        KeyError: a tensor that shows the architecture is missing.
    """
    backbone = infer_backbone(tensors, stated, path)
    expand = r"pixel_decoder\.encoder\.encoder\.layers\.\d+\.feedforward\.expand\.weight"
    widths = [len(tensor) for key, tensor in tensors.items() if re.fullmatch(expand, key)]
    usual = maskformer_model(backbone.name, encoder_layers=len(widths))
    heads = stated.heads or HEADS
    mask_channels, channels = tensors["pixel_decoder.mask_features.weight"].shape[:2]
    pixel_decoder = replace(
        usual.pixel_decoder,
        channels=channels,
        mask_channels=mask_channels,
        heads=heads,
        feedforward_channels=widths[0] if widths else usual.pixel_decoder.feedforward_channels,
    )
    queries, channels = tensors["query_decoder.query_positions.weight"].shape
    query_decoder = replace(
        usual.query_decoder,
        queries=queries,
        channels=channels,
        heads=heads,
        layers=_decoder_layers(tensors),
        feedforward_channels=_decoder_width(tensors),
    )
    config = replace(usual, backbone=backbone, pixel_decoder=pixel_decoder, query_decoder=query_decoder)
    return config, _num_classes(tensors)


def infer_detr(tensors: Mapping[str, Tensor], stated: Stated, path: Path) -> tuple[DetrConfig, int]:
    """Return the settings of the DETR of these tensors, under our names, and its number of classes.

    Raises:
        WeightsError: no backbone has these shapes.
        KeyError: a tensor that shows the architecture is missing.
    """
    mask_head = any(key.startswith("pyramid.") for key in tensors)
    if mask_head:
        tensors = {**tensors, **{key.removeprefix("detr."): tensor for key, tensor in tensors.items()}}
    queries, channels = tensors["query_decoder.query_positions.weight"].shape
    heads = stated.heads or HEADS
    if mask_head:
        heads = tensors["pyramid.convolutions.0.weight"].shape[0] - channels
    if stated.backbone:
        backbone = BackboneConfig(
            name=stated.backbone, image_mean=stated.image_mean, image_std=stated.image_std
        )
    else:
        backbone = infer_backbone(tensors, stated, path)
    config = DetrConfig(
        backbone=replace(backbone, freeze_norm=True, dilated=stated.dilated),
        channels=channels,
        heads=heads,
        feedforward_channels=_decoder_width(tensors),
        dropout=stated.dropout,
        encoder_layers=count_keys(tensors, r"encoder\.layers\.(\d+)\.attention\.attention\.input_weight"),
        decoder_layers=_decoder_layers(tensors),
        queries=queries,
        mask_head=mask_head,
    )
    return config, _num_classes(tensors)


def infer_backbone(tensors: Mapping[str, Tensor], stated: Stated, path: Path) -> BackboneConfig:
    """Return the settings of the backbone of these tensors, with the stated pixel statistics.

    Norms count as frozen where their batches have not been counted.

    Raises:
        WeightsError: no backbone has these shapes.
        KeyError: a tensor that shows the backbone is missing.
    """
    backbone = BackboneConfig(image_mean=stated.image_mean, image_std=stated.image_std)
    deep_stem = "backbone.network.conv1.6.weight" in tensors
    if deep_stem or "backbone.network.conv1.weight" in tensors:
        blocks = tuple(
            count_keys(tensors, rf"backbone\.network\.layer{s}\.(\d+)\.conv3\.weight") for s in range(1, 5)
        )
        names = DEEPLABS if deep_stem else RESNETS
        if blocks not in names:
            raise WeightsError(
                path,
                f"no ResNet with bottlenecks has {blocks} blocks; known are {', '.join(names.values())}",
            )
        counts = "backbone.network.bn1.num_batches_tracked" in tensors
        return replace(backbone, name=names[blocks], freeze_norm=not counts)
    return replace(backbone, name=_swin_of(tensors, path), drop_path_rate=stated.drop_path_rate)


def _swin_of(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Return the name of the Swin of these tensors, a published one or any other (`models.backbones`)."""
    channels = tensors["backbone.patch_embedding.projection.weight"].shape[0]
    table = r"backbone\.stages\.{}\.blocks\.(\d+)\.attention\.position_bias"
    depths: list[int] = []
    while count := count_keys(tensors, table.format(len(depths))):
        depths.append(count)
    if len(depths) != len(STRIDES):
        reason = f"its Swin has {len(depths)} stages; only those of {len(STRIDES)} can be converted"
        raise WeightsError(path, reason)
    tables = [tensors[f"backbone.stages.{stage}.blocks.0.attention.position_bias"] for stage in range(4)]
    window = (round(tables[0].shape[0] ** 0.5) + 1) // 2
    heads = tuple(table.shape[1] for table in tables)
    one_window = all(table.shape[0] == (2 * window - 1) ** 2 for table in tables)
    if not one_window or any(channels * 2**stage % count for stage, count in enumerate(heads)):
        raise WeightsError(
            path,
            f"no Swin has {channels} channels, {tuple(depths)} blocks and windows of {window}; known are "
            f"{', '.join(SWINS)}, and those of other sizes with the same window in all stages",
        )
    shape = SwinShape(channels=channels, depths=tuple(depths), heads=heads, window=window)
    return next((name for name, known in SWINS.items() if known == shape), shape.name)


def _deformable_decoder(tensors: Mapping[str, Tensor]) -> PixelDecoderConfig:
    encoder = "pixel_decoder.encoder"
    levels, channels = tensors[f"{encoder}.level_embedding"].shape
    base = PixelDecoderConfig()
    return replace(
        base,
        channels=channels,
        mask_channels=tensors["pixel_decoder.mask_features.weight"].shape[0],
        layers=count_keys(tensors, r"pixel_decoder\.encoder\.layers\.(\d+)\.attention\.offsets\.weight"),
        heads=tensors[f"{encoder}.layers.0.attention.weights.weight"].shape[0] // (levels * POINTS),
        points=POINTS,
        feedforward_channels=tensors[f"{encoder}.layers.0.feedforward.expand.weight"].shape[0],
    )


def _decoder_layers(tensors: Mapping[str, Tensor]) -> int:
    return count_keys(tensors, r"query_decoder\.layers\.(\d+)\.cross\.attention\.input_weight")


def _decoder_width(tensors: Mapping[str, Tensor]) -> int:
    return tensors["query_decoder.layers.0.feedforward.update.expand.weight"].shape[0]


def _num_classes(tensors: Mapping[str, Tensor]) -> int:
    return tensors["query_decoder.heads.classes.weight"].shape[0] - 1


def count_keys(tensors: Mapping[str, Tensor], expression: str) -> int:
    """Return how many keys match a regular expression."""
    return sum(1 for key in tensors if re.fullmatch(expression, key))

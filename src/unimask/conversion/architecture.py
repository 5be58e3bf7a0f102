"""Which model a set of tensors is of, told from their names and shapes."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from unimask.config.images import BackboneConfig, ModelConfig, PixelDecoderConfig, QueryDecoderConfig
from unimask.errors import WeightsError
from unimask.presets.maskformer import maskformer_model

HEADS = 8  # of attention in MaskFormer, which no tensor tells

POINTS = 4  # of deformable attention, fixed in the original and in transformers

RESNETS: Mapping[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
}
"""Blocks per stage -> name."""

DEEPLABS: Mapping[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50_deeplab",
    (3, 4, 23, 3): "resnet101_deeplab",
}
"""The same, of ResNets with a stem of three convolutions; the multi-grid leaves no trace."""

SWINS: Mapping[tuple[int, tuple[int, ...], int], str] = {
    (96, (2, 2, 6, 2), 7): "swin_tiny",
    (96, (2, 2, 18, 2), 7): "swin_small",
    (128, (2, 2, 18, 2), 12): "swin_base",
    (192, (2, 2, 18, 2), 12): "swin_large",
}
"""(channels, blocks per stage, window) -> name."""


def infer_model(tensors: Mapping[str, Tensor], path: Path) -> tuple[ModelConfig, int]:
    """The model that tensors with our names are of, and its number of classes.

    The number of heads leaves no trace in the query decoder: it is taken to be that of the pixel decoder, as
    in the original and in transformers; in MaskFormer there is no trace at all, and it is `HEADS`. The drop
    path rate of Swin is the paper's.

    Raises:
        WeightsError: tensors that tell the architecture are missing, or no backbone has these shapes.
    """
    pyramid = "pixel_decoder.entry.convolution.weight" in tensors
    try:
        backbone = infer_backbone(tensors, path)
        model = (_maskformer if pyramid else _mask2former)(tensors, backbone)
        num_classes = tensors["query_decoder.heads.classes.weight"].shape[0] - 1
    except KeyError as error:
        name = "MaskFormer" if pyramid else "Mask2Former"
        raise WeightsError(path, f"these are not the weights of a {name}", missing=(error.args[0],)) from None
    return model, num_classes


def _mask2former(tensors: Mapping[str, Tensor], backbone: BackboneConfig) -> ModelConfig:
    pixel_decoder = _deformable_decoder(tensors)
    query_decoder = QueryDecoderConfig(
        queries=tensors["query_decoder.query_features.weight"].shape[0],
        channels=tensors["query_decoder.query_features.weight"].shape[1],
        heads=pixel_decoder.heads,
        layers=_decoder_layers(tensors),
        feedforward_channels=tensors["query_decoder.layers.0.feedforward.update.expand.weight"].shape[0],
    )
    return ModelConfig(backbone=backbone, pixel_decoder=pixel_decoder, query_decoder=query_decoder)


def _maskformer(tensors: Mapping[str, Tensor], backbone: BackboneConfig) -> ModelConfig:
    encoder = r"pixel_decoder\.encoder\.encoder\.layers\.(\d+)\.feedforward\.expand\.weight"
    layers = count_keys(tensors, encoder)
    usual = maskformer_model(backbone.name, encoder_layers=layers)
    first = tensors.get("pixel_decoder.encoder.encoder.layers.0.feedforward.expand.weight")
    return replace(
        usual,
        backbone=backbone,
        pixel_decoder=replace(
            usual.pixel_decoder,
            channels=tensors["pixel_decoder.mask_features.weight"].shape[1],
            mask_channels=tensors["pixel_decoder.mask_features.weight"].shape[0],
            heads=HEADS,
            feedforward_channels=usual.pixel_decoder.feedforward_channels if first is None else len(first),
        ),
        query_decoder=replace(
            usual.query_decoder,
            queries=tensors["query_decoder.query_positions.weight"].shape[0],
            channels=tensors["query_decoder.query_positions.weight"].shape[1],
            heads=HEADS,
            layers=_decoder_layers(tensors),
            feedforward_channels=tensors["query_decoder.layers.0.feedforward.update.expand.weight"].shape[0],
        ),
    )


def infer_backbone(tensors: Mapping[str, Tensor], path: Path) -> BackboneConfig:
    """The backbone that tensors with our names are of, with the pixel statistics of ImageNet.

    Norms count as frozen where their batches have not been counted.

    Raises:
        WeightsError: no backbone has these shapes.
        KeyError: a tensor that tells the backbone is missing.
    """
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
        return BackboneConfig(name=names[blocks], freeze_norm=not counts)
    channels = tensors["backbone.patch_embedding.projection.weight"].shape[0]
    blocks = tuple(
        count_keys(tensors, rf"backbone\.stages\.{s}\.blocks\.(\d+)\.attention\.position_bias")
        for s in range(4)
    )
    rows = tensors["backbone.stages.0.blocks.0.attention.position_bias"].shape[0]
    window = (round(rows**0.5) + 1) // 2
    if (channels, blocks, window) not in SWINS:
        raise WeightsError(
            path,
            f"no Swin has {channels} channels, {blocks} blocks and windows of {window}; "
            f"known are {', '.join(SWINS.values())}",
        )
    return BackboneConfig(name=SWINS[channels, blocks, window], drop_path_rate=0.3)


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


def count_keys(tensors: Mapping[str, Tensor], expression: str) -> int:
    """How many keys match a regular expression."""
    return sum(1 for key in tensors if re.fullmatch(expression, key))

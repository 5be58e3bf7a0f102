"""Settings that the presets of several models share."""

from collections.abc import Callable, Mapping

from unimask.config.data import DataConfig, ScaleJitter, ShortSide
from unimask.config.images import Experiment
from unimask.config.models import BackboneConfig, ModelConfig, PixelDecoderConfig, QueryDecoderConfig
from unimask.config.training import TrainingConfig

Preset = Callable[[], Experiment]

BACKBONES: Mapping[str, str] = {
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "swin_tiny": "Swin-T",
    "swin_small": "Swin-S",
    "swin_base": "Swin-B (window 12)",
    "swin_large": "Swin-L (window 12)",
}

DEEPLAB_BACKBONES: Mapping[str, str] = {"resnet101_deeplab": "ResNet-101c"}
"""Further backbones of MaskFormer, with the stem and the multi-grid of DeepLab."""

EFFICIENTNET = BackboneConfig(
    name="tf_efficientnet_lite0",
    image_mean=(127.5, 127.5, 127.5),
    image_std=(127.5, 127.5, 127.5),
    freeze_norm=False,
)
"""EfficientNet-Lite0: 4.7 million parameters; expects pixel values from -1 to 1."""


def narrow_model(
    backbone: BackboneConfig, *, channels: int, queries: int, feedforward_channels: int, decoder_layers: int
) -> ModelConfig:
    """Return a model with a narrow decoder of `channels` (a multiple of 32) and 3 encoder layers."""
    return ModelConfig(
        backbone=backbone,
        pixel_decoder=PixelDecoderConfig(
            channels=channels, mask_channels=channels, layers=3, feedforward_channels=feedforward_channels
        ),
        query_decoder=QueryDecoderConfig(
            queries=queries,
            channels=channels,
            feedforward_channels=feedforward_channels,
            layers=decoder_layers,
        ),
    )


def semantic_data(crop: tuple[int, int], short_side: int, longest: int) -> DataConfig:
    """Return the data settings of ADE20K, Cityscapes and Mapillary Vistas, for every task.

    In training the short side is resized to 0.5 to 2 times `short_side`, colors are jittered and a crop is
    taken. The original draws one of 16 sizes in that range and limits the long side as well.
    """
    factor = short_side / min(crop)
    return DataConfig(
        crop=crop,
        jitter=ScaleJitter(low=0.5 * factor, high=2.0 * factor, relative_to="short_side"),
        color=1.0,
        resize=ShortSide(size=short_side, longest=longest),
    )


def poly_training(steps: int) -> TrainingConfig:
    """Return the polynomial schedule of ADE20K, Cityscapes and Mapillary Vistas, without warm-up."""
    return TrainingConfig(steps=steps, schedule="poly", warmup_steps=0)

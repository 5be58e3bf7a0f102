"""Backbones that presets share."""

from collections.abc import Mapping

from unimask.config import BackboneConfig

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
"""4.7 million parameters; expects pixels from -1 to 1."""

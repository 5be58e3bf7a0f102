"""Named experiments of Mask2Former, with the settings of its release.

Source: Mask2Former (2112.01527), Sec. 4.1, and the configurations of the original release.
"""

from collections.abc import Callable, Mapping

from unimask.config.images import Experiment, PostprocessConfig
from unimask.config.models import BackboneConfig, ModelConfig, QueryDecoderConfig
from unimask.config.training import TrainingConfig
from unimask.presets.shared import BACKBONES, poly_training, semantic_data


def published_model(backbone: str, queries: int = 100, freeze_norm: bool = True) -> ModelConfig:
    """Return the model of the paper with one of `BACKBONES`; Swin has a drop path rate of 0.3.

    `freeze_norm` matters for ResNets only; Swin has no batch norms.
    """
    swin = backbone.startswith("swin")
    return ModelConfig(
        backbone=BackboneConfig(name=backbone, freeze_norm=freeze_norm, drop_path_rate=0.3 if swin else 0.0),
        query_decoder=QueryDecoderConfig(queries=queries),
    )


def coco(backbone: str) -> Experiment:
    """COCO, panoptic and instance: 50 epochs, large-scale jitter; 200 queries and 100 epochs for Swin-L."""
    large = backbone == "swin_large"
    return Experiment(
        model=published_model(backbone, queries=200 if large else 100),
        training=TrainingConfig(steps=737_500 if large else 368_750),
    )


def ade20k_semantic(backbone: str) -> Experiment:
    """ADE20K semantic: crops of 512, of 640 for Swin-B and Swin-L; 160,000 steps.

    As in the original, the batch norms of ResNet-101 are trained (there synchronised over 8 devices), and
    those of ResNet-50 are not.
    """
    side = 640 if backbone in ("swin_base", "swin_large") else 512
    return Experiment(
        model=published_model(backbone, freeze_norm=backbone != "resnet101"),
        data=semantic_data((side, side), side, 4 * side),
        postprocess=PostprocessConfig(resize_classes=True),
        training=poly_training(160_000),
    )


def ade20k_panoptic(backbone: str) -> Experiment:
    """ADE20K panoptic: crops of 640; 160,000 steps; Swin-L has 200 queries."""
    return Experiment(
        model=published_model(backbone, queries=200 if backbone == "swin_large" else 100),
        data=semantic_data((640, 640), 640, 2560),
        training=poly_training(160_000),
    )


def cityscapes(backbone: str) -> Experiment:
    """Cityscapes: crops of 512 x 1024, 90,000 steps; the batch norms of ResNet are trained.

    The original synchronises them over 8 devices and uses 200 queries for Swin-L (panoptic and instance).
    """
    return Experiment(
        model=published_model(backbone, queries=200 if backbone == "swin_large" else 100, freeze_norm=False),
        data=semantic_data((512, 1024), 1024, 2048),
        training=poly_training(90_000),
    )


def mapillary_vistas(backbone: str) -> Experiment:
    """Mapillary Vistas: crops of 1024, 300,000 steps; every query that is not no-object is kept."""
    return Experiment(
        model=published_model(backbone, queries=200 if backbone == "swin_large" else 100),
        data=semantic_data((1024, 1024), 2048, 2048),
        postprocess=PostprocessConfig(object_threshold=0.0),
        training=poly_training(300_000),
    )


PUBLISHED: Mapping[str, tuple[str, Callable[[str], Experiment], tuple[str, ...]]] = {
    "coco_panoptic": ("COCO panoptic (133 categories)", coco, tuple(BACKBONES)),
    "coco_instance": ("COCO instance (80 categories)", coco, tuple(BACKBONES)),
    "ade20k_semantic": ("ADE20K semantic (150 categories)", ade20k_semantic, tuple(BACKBONES)),
    "ade20k_panoptic": ("ADE20K panoptic (150 categories)", ade20k_panoptic, ("resnet50", "swin_large")),
    "cityscapes_panoptic": ("Cityscapes (19 categories)", cityscapes, tuple(BACKBONES)),
    "mapillary_panoptic": ("Mapillary Vistas (65 categories)", mapillary_vistas, ("resnet50", "swin_large")),
}
"""Prefix of the preset's name -> title, function backbone -> experiment, available backbones."""

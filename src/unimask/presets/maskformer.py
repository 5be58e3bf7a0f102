"""Named experiments of MaskFormer, with the settings of its release.

Source: MaskFormer (2107.06278), Sec. 4.1, and the configurations of the original release.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from unimask.config.data import DataConfig, ScaleJitter
from unimask.config.images import Experiment, PostprocessConfig
from unimask.config.models import BackboneConfig, ModelConfig, PixelDecoderConfig, QueryDecoderConfig
from unimask.config.training import LossConfig, TrainingConfig
from unimask.presets.shared import BACKBONES, DEEPLAB_BACKBONES, poly_training, semantic_data


def maskformer_model(backbone: str, encoder_layers: int) -> ModelConfig:
    """Return MaskFormer with one of its backbones and `encoder_layers` at stride 32 in the pixel decoder."""
    swin = backbone.startswith("swin")
    return ModelConfig(
        backbone=BackboneConfig(name=backbone, drop_path_rate=0.3 if swin else 0.0),
        pixel_decoder=PixelDecoderConfig(
            kind="pyramid", strides=(32,), layers=encoder_layers, feedforward_channels=2048, dropout=0.1
        ),
        query_decoder=QueryDecoderConfig(
            layers=6,
            dropout=0.1,
            memory_strides=(32,),
            level_embedding=False,
            visibility="full",
            order=("self", "cross", "feedforward"),
            query_features="zeros",
            predict_before_layers=False,
        ),
    )


MASKFORMER_LOSSES = LossConfig(
    class_weight=1.0, mask_term="focal", mask_weight=20.0, dice_weight=1.0, sampling="pixels"
)
"""The loss weights of MaskFormer (2107.06278), Sec. 4.1."""

MASKFORMER_POSTPROCESS = PostprocessConfig(object_threshold=0.7, fill="winner")


def maskformer_training(backbone: str, training: TrainingConfig) -> TrainingConfig:
    """Return `training` with the optimiser settings of a backbone.

    Swin has more weight decay, the full learning rate in the backbone, and a warm-up.
    """
    if backbone.startswith("swin"):
        return replace(
            training, learning_rate=6e-5, weight_decay=0.01, backbone_multiplier=1.0, warmup_steps=1500
        )
    return replace(training, weight_decay=1e-4)


def maskformer_coco(backbone: str) -> Experiment:
    """COCO panoptic: 300 epochs at batch 64; 6 encoder layers on ResNets, none on Swin.

    The short side is resized to 480 to 800 pixels; the original sometimes crops before resizing. Optimiser
    settings for Swin were not published; those of ADE20K are used.
    """
    swin = backbone.startswith("swin")
    return Experiment(
        model=maskformer_model(backbone, encoder_layers=0 if swin else 6),
        losses=MASKFORMER_LOSSES,
        data=DataConfig(crop=(800, 1333), jitter=ScaleJitter(low=0.6, high=1.0, relative_to="short_side")),
        postprocess=MASKFORMER_POSTPROCESS,
        training=maskformer_training(
            backbone, TrainingConfig(steps=554_400, batch_size=64, milestones=(2 / 3,))
        ),
    )


def maskformer_ade20k_semantic(backbone: str) -> Experiment:
    """ADE20K semantic: crops of 512, of 640 for Swin-B and Swin-L; 160,000 steps."""
    side = 640 if backbone in ("swin_base", "swin_large") else 512
    return Experiment(
        model=maskformer_model(backbone, encoder_layers=0),
        losses=MASKFORMER_LOSSES,
        data=semantic_data((side, side), side, 4 * side),
        postprocess=replace(MASKFORMER_POSTPROCESS, resize_classes=True),
        training=maskformer_training(backbone, poly_training(160_000)),
    )


def per_pixel_ade20k(backbone: str) -> Experiment:
    """ADE20K semantic with a linear per-pixel classifier: PerPixelBaseline."""
    model = _per_pixel_plus_model(backbone)
    model = replace(model, query_decoder=replace(model.query_decoder, layers=0))
    return replace(per_pixel_plus_ade20k(backbone), model=model)


def per_pixel_plus_ade20k(backbone: str) -> Experiment:
    """ADE20K semantic with MaskFormer's decoder and a query per category: PerPixelBaseline+.

    Logits are resized rather than the values of the categories, as for every per-pixel classifier.
    """
    model = _per_pixel_plus_model(backbone)
    return replace(maskformer_ade20k_semantic(backbone), model=model, postprocess=MASKFORMER_POSTPROCESS)


def _per_pixel_plus_model(backbone: str) -> ModelConfig:
    return replace(maskformer_model(backbone, encoder_layers=0), classification="pixels")


def maskformer_ade20k_panoptic(backbone: str) -> Experiment:
    """ADE20K panoptic: crops of 640, 6 encoder layers; 720,000 steps."""
    semantic = maskformer_ade20k_semantic(backbone)
    return replace(
        semantic,
        model=maskformer_model(backbone, encoder_layers=6),
        postprocess=MASKFORMER_POSTPROCESS,
        data=semantic_data((640, 640), 640, 2560),
        training=replace(semantic.training, steps=720_000),
    )


def maskformer_cityscapes(backbone: str) -> Experiment:
    """Cityscapes semantic: crops of 512 x 1024; 90,000 steps."""
    return replace(
        maskformer_ade20k_semantic(backbone),
        data=semantic_data((512, 1024), 1024, 2048),
        training=maskformer_training(backbone, poly_training(90_000)),
    )


def maskformer_mapillary_vistas(backbone: str) -> Experiment:
    """Mapillary Vistas semantic: crops of 1280; 300,000 steps."""
    return replace(
        maskformer_ade20k_semantic(backbone),
        data=semantic_data((1280, 1280), 2048, 2048),
        training=maskformer_training(backbone, poly_training(300_000)),
    )


PUBLISHED: Mapping[str, tuple[str, Callable[[str], Experiment], tuple[str, ...]]] = {
    "maskformer_coco_panoptic": (
        "MaskFormer, COCO panoptic (133 categories)",
        maskformer_coco,
        tuple(BACKBONES),
    ),
    "maskformer_ade20k_semantic": (
        "MaskFormer, ADE20K semantic (150 categories)",
        maskformer_ade20k_semantic,
        (*BACKBONES, *DEEPLAB_BACKBONES),
    ),
    "maskformer_ade20k_panoptic": (
        "MaskFormer, ADE20K panoptic (150 categories)",
        maskformer_ade20k_panoptic,
        ("resnet50", "resnet101"),
    ),
    "maskformer_cityscapes_semantic": (
        "MaskFormer, Cityscapes semantic (19 categories)",
        maskformer_cityscapes,
        ("resnet101", "resnet101_deeplab"),
    ),
    "maskformer_mapillary_semantic": (
        "MaskFormer, Mapillary semantic (65 categories)",
        maskformer_mapillary_vistas,
        ("resnet50",),
    ),
    "per_pixel_ade20k_semantic": (
        "PerPixelBaseline, ADE20K semantic (150 categories)",
        per_pixel_ade20k,
        ("resnet50",),
    ),
    "per_pixel_plus_ade20k_semantic": (
        "PerPixelBaseline+, ADE20K semantic (150 categories)",
        per_pixel_plus_ade20k,
        ("resnet50",),
    ),
}
"""Prefix of the preset's name -> title, function backbone -> experiment, available backbones."""

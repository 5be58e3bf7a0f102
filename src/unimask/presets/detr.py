"""Named experiments of DETR.

Source: DETR (2005.12872), Sec. 4 and A.4, and the defaults of the original release.
"""

from collections.abc import Callable
from dataclasses import replace

from unimask.config.data import DataConfig, ScaleJitter, ShortSide
from unimask.config.images import Experiment, PostprocessConfig
from unimask.config.models import BackboneConfig, DetrConfig
from unimask.config.training import LossConfig, TrainingConfig
from unimask.presets.shared import BACKBONES, EFFICIENTNET

DETR_LOSSES = LossConfig(
    class_weight=1.0, mask_term="focal", mask_weight=1.0, dice_weight=1.0, sampling="pixels"
)
"""Weights 1, 5 and 2 for class, box and overlap (Sec. A.4); focal and Dice loss for masks (Sec. 4.2)."""


def detr(backbone: str, dilated: bool = False) -> Experiment:
    """DETR on COCO: 500 epochs, learning rate divided by 10 after 400; short sides of 480 to 800 pixels.

    Here images are resized by large-scale jitter and cropped; the original draws one of 11 sizes and crops
    half of the images before resizing. The gradient norm is clipped to 0.1, as in the original.
    """
    return Experiment(
        model=DetrConfig(backbone=BackboneConfig(name=backbone, dilated=dilated)),
        losses=DETR_LOSSES,
        data=DataConfig(
            crop=(800, 1333),
            jitter=ScaleJitter(low=0.6, high=1.3),
            resize=ShortSide(size=800, longest=1333),
            divisor=1,
        ),
        training=TrainingConfig(
            steps=924_000,  # 118,287 images, batch 64
            batch_size=64,
            weight_decay=1e-4,
            gradient_clip=0.1,
            milestones=(0.8,),
            warmup_steps=0,
        ),
    )


def detr_panoptic(backbone: str) -> Experiment:
    """DETR with its mask head on COCO panoptic: the settings for converted weights."""
    found = detr(backbone)
    return replace(
        found,
        model=DetrConfig(backbone=BackboneConfig(name=backbone), mask_head=True),
        postprocess=PostprocessConfig(object_threshold=0.85),
    )


def detr_small() -> Experiment:
    """Boxes in your own images on a modest machine: DETR with EfficientNet-Lite0, 128 channels.

    DETR converges slowly: it needs many more steps than the mask presets. In trials a narrow, shallow model
    converged faster than one of 192 channels, and so did one that adds positions to the encoder's input.
    Batch norms are frozen: start from ImageNet weights.
    """
    return Experiment(
        model=DetrConfig(
            backbone=replace(EFFICIENTNET, freeze_norm=True),
            channels=128,
            heads=4,
            feedforward_channels=256,
            dropout=0.0,
            encoder_layers=2,
            decoder_layers=3,
            queries=50,
            positions="input_and_attention",
        ),
        losses=DETR_LOSSES,
        data=DataConfig(
            crop=(384, 384),
            jitter=ScaleJitter(low=0.7, high=1.6),
            color=0.5,
            resize=ShortSide(size=384, longest=640),
        ),
        training=TrainingConfig(
            steps=12_000,
            batch_size=8,
            learning_rate=4e-4,
            weight_decay=1e-4,
            backbone_multiplier=0.3,
            gradient_clip=1.0,
            milestones=(0.8,),
            warmup_steps=50,
            ema_decay=0.999,
            evaluate_every=1000,
            checkpoint_every=250,
        ),
    )


def detr_tiny() -> Experiment:
    """For tests and first trials of boxes: a small DETR that learns the generated shapes on a CPU.

    The backbone is randomly initialised and shallow, so the features are those of stride 8, and positions are
    added to the encoder's input.
    """
    return Experiment(
        model=DetrConfig(
            backbone=BackboneConfig(name="test_resnet", freeze_norm=False),
            channels=64,
            heads=4,
            feedforward_channels=128,
            dropout=0.0,
            encoder_layers=2,
            decoder_layers=3,
            queries=10,
            stride=8,
            positions="input_and_attention",
        ),
        losses=DETR_LOSSES,
        data=DataConfig(
            crop=(64, 88),
            jitter=ScaleJitter(low=0.9, high=1.2),
            resize=ShortSide(size=64, longest=88),
            divisor=8,
        ),
        training=TrainingConfig(
            steps=4500,
            batch_size=16,
            learning_rate=1e-3,
            weight_decay=1e-4,
            backbone_multiplier=1.0,
            gradient_clip=1.0,
            milestones=(0.8,),
            warmup_steps=50,
            ema_decay=0.99,
            evaluate_every=500,
            checkpoint_every=100,
            workers=0,
        ),
    )


def _published_detr(backbone: str, dilated: bool) -> Callable[[], Experiment]:
    def preset() -> Experiment:
        return detr(backbone, dilated)

    stage = ", dilated last stage (DC5)" if dilated else ""
    preset.__doc__ = (
        f"DETR on COCO boxes, {BACKBONES[backbone]}{stage}: as in the original release, in float32."
    )
    return preset


DETR_PRESETS: dict[str, Callable[[], Experiment]] = {
    "detr_small": detr_small,
    "detr_tiny": detr_tiny,
    **{
        f"detr_{backbone}{'_dc5' * dilated}": _published_detr(backbone, dilated)
        for backbone in ("resnet50", "resnet101")
        for dilated in (False, True)
    },
}
"""Name -> function that returns the experiment; part of `presets.PRESETS`."""

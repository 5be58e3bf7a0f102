"""Named experiments for your own data on a modest machine, and of the models in the package."""

from dataclasses import replace

from unimask.config.data import DataConfig, Scale, ScaleJitter, ShortSide, Tiles
from unimask.config.images import Experiment, PostprocessConfig
from unimask.config.models import BackboneConfig
from unimask.config.training import LossConfig, TrainingConfig
from unimask.presets.shared import EFFICIENTNET, narrow_model


def small() -> Experiment:
    """Your own data on a modest machine: EfficientNet-Lite0, narrow decoder, crops of 512, 4000 steps."""
    return Experiment(
        model=narrow_model(
            EFFICIENTNET, channels=128, queries=100, feedforward_channels=512, decoder_layers=6
        ),
        losses=LossConfig(points=3136),
        data=DataConfig(
            crop=(512, 512),
            jitter=ScaleJitter(low=0.5, high=2.0),
            color=0.5,
            resize=ShortSide(size=512, longest=1024),
        ),
        training=TrainingConfig(
            steps=4000,
            batch_size=8,
            learning_rate=2e-4,
            schedule="poly",
            warmup_steps=100,
            evaluate_every=500,
            checkpoint_every=250,
        ),
    )


def nuclei() -> Experiment:
    """Nuclei in microscopy images, in tiles of 128 pixels: EfficientNet-Lite0, narrow decoder.

    A resized tile has the size of a training crop, because queries and mask features depend on the position
    within it.
    """
    model = narrow_model(EFFICIENTNET, channels=96, queries=80, feedforward_channels=512, decoder_layers=6)
    return Experiment(
        model=replace(
            model,
            pixel_decoder=replace(model.pixel_decoder, heads=6, position_octaves=5),
            query_decoder=replace(model.query_decoder, heads=6),
        ),
        losses=LossConfig(points=1024),
        data=DataConfig(
            crop=(160, 160),
            jitter=ScaleJitter(low=1.0, high=2.4, relative_to="file"),
            vertical_flip=0.5,
            transpose=0.5,
            color=0.5,
            gamma=0.5,
            blur=1.0,
            noise=6.0,
            resize=Scale(factor=1.25),
            view=Tiles(size=128, overlap=32),
        ),
        postprocess=PostprocessConfig(
            max_instances=80,
            duplicate_iou=0.5,
            object_threshold=0.5,
            overlap_threshold=0.5,
            instance_threshold=0.8,
        ),
        training=TrainingConfig(
            steps=6800,
            batch_size=8,
            learning_rate=5e-4,
            backbone_multiplier=0.3,
            schedule="poly",
            warmup_steps=100,
            ema_decay=0.995,
            evaluate_every=2300,
            checkpoint_every=100,
            workers=1,
        ),
    )


def street() -> Experiment:
    """Street scenes, semantic, at 480 x 360: EfficientNet-Lite0, narrow pyramid, per-pixel classification.

    Images are enlarged first, because poles and signs are one to four pixels wide.
    """
    model = narrow_model(EFFICIENTNET, channels=96, queries=1, feedforward_channels=384, decoder_layers=1)
    return Experiment(
        model=replace(
            model,
            pixel_decoder=replace(model.pixel_decoder, kind="pyramid", strides=(32,), layers=2, heads=6),
            query_decoder=replace(model.query_decoder, layers=0, heads=6),
            classification="pixels",
        ),
        losses=LossConfig(class_weight=1.0, category_dice_weight=1.0),
        data=DataConfig(
            crop=(320, 384),
            jitter=ScaleJitter(low=0.9, high=2.2, relative_to="file"),
            color=0.7,
            resize=Scale(factor=1.5),
        ),
        training=TrainingConfig(
            steps=3400,
            batch_size=4,
            learning_rate=1e-3,
            backbone_multiplier=0.4,
            gradient_clip=1.0,
            schedule="poly",
            warmup_steps=100,
            ema_decay=0.995,
            evaluate_every=850,
            checkpoint_every=100,
            workers=0,
        ),
    )


def tiny() -> Experiment:
    """For tests and first trials: half a million parameters, learns the generated shapes on a CPU."""
    backbone = BackboneConfig(name="test_resnet", freeze_norm=False)
    model = narrow_model(backbone, channels=32, queries=13, feedforward_channels=64, decoder_layers=3)
    return Experiment(
        model=replace(
            model,
            pixel_decoder=replace(model.pixel_decoder, layers=1, heads=4),
            query_decoder=replace(model.query_decoder, heads=4),
        ),
        losses=LossConfig(points=196),
        data=DataConfig(
            crop=(64, 64), jitter=ScaleJitter(low=0.7, high=1.4), resize=ShortSide(size=64, longest=128)
        ),
        training=TrainingConfig(
            steps=200,
            batch_size=4,
            learning_rate=1e-3,
            backbone_multiplier=1.0,
            schedule="poly",
            evaluate_every=100,
            checkpoint_every=50,
            log_every=10,
            workers=0,
        ),
    )

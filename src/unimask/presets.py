"""Named experiments as functions, and the paper's ablations as dicts of overrides.

The presets named after a data set, a task and a backbone (`coco_panoptic_resnet50`) have the settings of
the original release; `small` is for people's own data on a modest machine. A preset's description is the
first line of its docstring.

Source: Mask2Former, Sec. 4.1, and the configurations of the original release.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from unimask.backbone_presets import BACKBONES, DEEPLAB_BACKBONES, EFFICIENTNET
from unimask.config import (
    BackboneConfig,
    DataConfig,
    Experiment,
    LossConfig,
    ModelConfig,
    PixelDecoderConfig,
    PostprocessConfig,
    QueryDecoderConfig,
    Scale,
    ScaleJitter,
    ShortSide,
    Tiles,
    TrainingConfig,
)
from unimask.detr_presets import DETR_PRESETS
from unimask.presets_maskformer import PUBLISHED as MASKFORMER
from unimask.recipes import poly_training, semantic_data
from unimask.sequence_config import (
    DecodingConfig,
    SequenceModelConfig,
    TextConfig,
    TranslationExperiment,
)

Preset = Callable[[], Experiment]


def published_model(backbone: str, queries: int = 100, freeze_norm: bool = True) -> ModelConfig:
    """The model of the paper with one of `BACKBONES`; Swin has a drop path rate of 0.3.

    `freeze_norm` matters for ResNet only, Swin has no batch norms.
    """
    swin = backbone.startswith("swin")
    return ModelConfig(
        backbone=BackboneConfig(name=backbone, freeze_norm=freeze_norm, drop_path_rate=0.3 if swin else 0.0),
        query_decoder=QueryDecoderConfig(queries=queries),
    )


def narrow_model(
    backbone: BackboneConfig, *, channels: int, queries: int, feedforward_channels: int, decoder_layers: int
) -> ModelConfig:
    """A model with a narrow decoder of `channels` (a multiple of 32, for the norms) and 3 encoder layers."""
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


def coco(backbone: str) -> Experiment:
    """COCO, panoptic and instance: 50 epochs, large-scale jitter; 200 queries and 100 epochs for Swin-L."""
    large = backbone == "swin_large"
    return Experiment(
        model=published_model(backbone, queries=200 if large else 100),
        training=TrainingConfig(steps=737_500 if large else 368_750),
    )


def ade20k_semantic(backbone: str) -> Experiment:
    """ADE20K semantic: crops of 512, of 640 for Swin-B and Swin-L; 160,000 steps.

    The original trains the batch norms of ResNet-101 here (synchronised over 8 devices), not of ResNet-50.
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

    The original synchronises them over 8 devices, and has 200 queries for Swin-L (panoptic and instance).
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
    """Nuclei in microscopy pictures, seen in tiles of 128 pixels: EfficientNet-Lite0, narrow decoder.

    A tile, resized, is as large as a training crop: queries and mask features know their place within it.
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
            color=0.5,
            resize=Scale(factor=1.25),
            view=Tiles(size=128, overlap=84),
        ),
        postprocess=PostprocessConfig(
            max_instances=80,
            duplicate_iou=0.5,
            object_threshold=0.5,
            overlap_threshold=0.5,
            instance_threshold=0.7,
        ),
        training=TrainingConfig(
            steps=10_000,
            batch_size=8,
            learning_rate=5e-4,
            backbone_multiplier=0.3,
            schedule="poly",
            warmup_steps=100,
            ema_decay=0.995,
            evaluate_every=700,
            checkpoint_every=100,
            workers=1,
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


def _published(title: str, build: Callable[[str], Experiment], backbone: str) -> Preset:
    def preset() -> Experiment:
        return build(backbone)

    name = {**BACKBONES, **DEEPLAB_BACKBONES}[backbone]
    preset.__doc__ = f"{title}, {name}: as the original release, in float32."
    return preset


_PUBLISHED: Mapping[str, tuple[str, Callable[[str], Experiment], tuple[str, ...]]] = {
    "coco_panoptic": ("COCO panoptic (133 categories)", coco, tuple(BACKBONES)),
    "coco_instance": ("COCO instance (80 categories)", coco, tuple(BACKBONES)),
    "ade20k_semantic": ("ADE20K semantic (150 categories)", ade20k_semantic, tuple(BACKBONES)),
    "ade20k_panoptic": ("ADE20K panoptic (150 categories)", ade20k_panoptic, ("resnet50", "swin_large")),
    "cityscapes_panoptic": ("Cityscapes (19 categories)", cityscapes, tuple(BACKBONES)),
    "mapillary_panoptic": ("Mapillary Vistas (65 categories)", mapillary_vistas, ("resnet50", "swin_large")),
    **MASKFORMER,
}


PRESETS: dict[str, Preset] = {
    "small": small,
    "nuclei": nuclei,
    "tiny": tiny,
    **DETR_PRESETS,
    **{
        f"{name}_{backbone}": _published(title, build, backbone)
        for name, (title, build, backbones) in _PUBLISHED.items()
        for backbone in backbones
    },
}
"""Name -> function that gives the experiment."""


ABLATIONS: dict[str, dict[str, object]] = {
    # masked attention (Table 4a and 4c): cross-attention sees the whole memory
    "full_attention": {"model.query_decoder.visibility": "full"},
    # efficient multi-scale features (Table 4a and 4d): every layer sees the same scale
    "single_scale_32": {"model.query_decoder.memory_strides": (32,)},
    "single_scale_16": {"model.query_decoder.memory_strides": (16,)},
    "single_scale_8": {"model.query_decoder.memory_strides": (8,)},
    # cross before self attention (Table 4b): the order of DETR
    "self_attention_first": {"model.query_decoder.order": ("self", "cross", "feedforward")},
    # learned query features (Table 4b): zeros, which say nothing before the first layer
    "zero_query_features": {
        "model.query_decoder.query_features": "zeros",
        "model.query_decoder.predict_before_layers": False,
    },
    # supervised query features (Sec. 3.2.3): learned, but no prediction is made from them
    "unsupervised_query_features": {"model.query_decoder.predict_before_layers": False},
    # no dropout (Table 4b): the rate of DETR
    "dropout": {"model.query_decoder.dropout": 0.1},
    # losses on points (Table 5): matching and losses on every cell of the stride-4 maps
    "dense_losses": {"losses.sampling": "dense"},
}
"""Claim of the paper -> the settings that take it away; apply one with `config.override`."""


def transformer_tiny_multi30k() -> TranslationExperiment:
    """Translation, Multi30k English to German: 4 + 4 layers of width 128, 10,000 byte pairs, 8000 updates.

    The published Tiny configuration (Wu et al., ACL 2021), but for averaged weights: there the mean of the
    last ten checkpoints, here a moving average.
    """
    return TranslationExperiment(
        model=SequenceModelConfig(
            channels=128,
            heads=4,
            feedforward_channels=256,
            encoder_layers=4,
            decoder_layers=4,
            dropout=0.3,
        ),
        data=TextConfig(lowercase=True, vocabulary=10_000),
        decoding=DecodingConfig(beams=5, length_penalty=1.0),
        training=TrainingConfig(
            steps=8000,
            batch_size=4096,
            learning_rate=0.005,
            weight_decay=0.0,
            betas=(0.9, 0.98),
            gradient_clip=5.0,
            schedule="noam",
            warmup_steps=2000,
            ema_decay=0.998,
            evaluate_every=500,
            checkpoint_every=100,
            workers=0,
        ),
    )


def glyphs() -> TranslationExperiment:
    """Rendered digits, read column by column: vectors in, characters out; minutes on a CPU."""
    return TranslationExperiment(
        model=SequenceModelConfig(
            channels=64,
            heads=4,
            feedforward_channels=128,
            encoder_layers=2,
            decoder_layers=2,
            source="vectors",
            source_features=64,
        ),
        data=TextConfig(split_words=False, vocabulary=24),
        decoding=DecodingConfig(limit_factor=0.0, limit_extra=12),
        training=TrainingConfig(
            steps=1200,
            batch_size=2048,
            learning_rate=0.003,
            weight_decay=0.0,
            betas=(0.9, 0.98),
            gradient_clip=1.0,
            schedule="noam",
            warmup_steps=200,
            evaluate_every=250,
            checkpoint_every=250,
            workers=0,
        ),
    )


TRANSLATION_PRESETS: dict[str, Callable[[], TranslationExperiment]] = {
    "glyphs": glyphs,
    "transformer-tiny-multi30k": transformer_tiny_multi30k,
}
"""Name -> function that gives the experiment, of models that read a sequence and write tokens."""


def description(name: str) -> str:
    """What the preset is for: the first line of its docstring."""
    return ({**PRESETS, **TRANSLATION_PRESETS}[name].__doc__ or "").strip().splitlines()[0]

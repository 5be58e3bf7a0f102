"""Named experiments of EoMT, with the settings of its release.

Source: EoMT (2503.19108), Sec. 4.1 and Table 8, and the configurations of the original release.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from unimask.config.data import DataConfig, ScaleJitter, ShortSide, SlidingWindow, Square
from unimask.config.images import Experiment, PostprocessConfig
from unimask.config.models import EomtConfig, VisionTransformerConfig
from unimask.config.training import LossConfig, TrainingConfig
from unimask.presets.shared import Preset

Weights = Literal["dinov2", "dinov3"]

_SIZES: Mapping[str, tuple[int, int, int, int]] = {
    "small": (384, 12, 6, 3),
    "base": (768, 12, 12, 3),
    "large": (1024, 24, 16, 4),
    "giant": (1536, 40, 24, 5),
}
"""Name -> width, blocks, heads, blocks with queries."""
_GATED: Mapping[str, int] = {"giant": 4096}
"""Name -> hidden width of gated feed-forwards; the others are not gated and have four times their width."""

LONGEST = 32  # largest aspect ratio; longer images are scaled down, so that none has thousands of windows
_COCO_EPOCH = 118_287 / 16  # steps
_ADE20K_EPOCH = 20_210 / 16
_CITYSCAPES_EPOCH = 2_975 / 16


def published_model(name: str, size: int, weights: Weights = "dinov2", queries: int = 200) -> EomtConfig:
    """Return the model of the paper: `small`, `base`, `large` or `giant`, for squares of `size` pixels."""
    channels, blocks, heads, query_blocks = _SIZES[name]
    timm_name = {"dinov2": f"vit_{name}_patch14_reg4_dinov2", "dinov3": f"vit_{name}_patch16_dinov3"}
    backbone = VisionTransformerConfig(
        name=timm_name[weights],
        kind=weights,
        channels=channels,
        blocks=blocks,
        heads=heads,
        feedforward_channels=_GATED.get(name, 4 * channels),
        gated=name in _GATED,
        size=size,
    )
    return EomtConfig(backbone=backbone, queries=queries, query_blocks=query_blocks)


def _training(epochs: int, steps_of_epoch: float, weights: Weights) -> TrainingConfig:
    dinov3 = weights == "dinov3"
    return TrainingConfig(
        steps=round(epochs * steps_of_epoch),
        learning_rate=2e-4 if dinov3 else 1e-4,
        backbone_multiplier=1.0,
        layer_decay=0.8,
        query_blocks_decay=not dinov3,
        decay_everything=True,
        schedule="poly",
        warmup_steps=2000 if dinov3 else 500,
        backbone_warmup_steps=3000 if dinov3 else 1000,
        precision="bf16-mixed",
    )


def coco(model: EomtConfig) -> Experiment:
    """COCO, panoptic and instance: 12 epochs, 24 for S and B; large-scale jitter; padded to squares."""
    size = model.backbone.size
    epochs = 12 if model.backbone.channels >= 1024 else 24
    return Experiment(
        model=model,
        data=DataConfig(crop=(size, size), resize=Square(size=size), divisor=16, padding="black"),
        training=_training(epochs, _COCO_EPOCH, model.backbone.kind),
    )


def ade20k_panoptic(model: EomtConfig) -> Experiment:
    """ADE20K panoptic: as COCO, 31 epochs."""
    experiment = coco(model)
    return replace(experiment, training=_training(31, _ADE20K_EPOCH, model.backbone.kind))


def in_sliding_windows(data: DataConfig, size: int) -> DataConfig:
    """Return `data` with sliding windows: squares of `size` pixels, of images whose short side is `size`."""
    resize = ShortSide(size=size, longest=LONGEST * size)
    return replace(data, resize=resize, view=SlidingWindow(size=size))


def _semantic(model: EomtConfig, training: TrainingConfig) -> Experiment:
    size = model.backbone.size
    data = DataConfig(
        crop=(size, size),
        jitter=ScaleJitter(low=0.5, high=2.0, relative_to="short_side"),
        color=1.0,
        divisor=16,
        padding="black",
    )
    return Experiment(
        model=model,
        data=in_sliding_windows(data, size),
        postprocess=PostprocessConfig(resize_classes=True),
        training=training,
    )


def ade20k_semantic(model: EomtConfig) -> Experiment:
    """ADE20K semantic: squares of 512, 31 epochs.

    From DINOv3: 16 epochs, and a tenth of the learning rate for blocks without queries.
    """
    if model.backbone.kind == "dinov2":
        return _semantic(model, _training(31, _ADE20K_EPOCH, "dinov2"))
    training = replace(_training(16, _ADE20K_EPOCH, "dinov3"), layer_decay=1.0, backbone_multiplier=0.1)
    return _semantic(model, training)


def cityscapes_semantic(model: EomtConfig) -> Experiment:
    """Cityscapes semantic: squares of 1024, 107 epochs."""
    return _semantic(model, _training(107, _CITYSCAPES_EPOCH, model.backbone.kind))


def eomt_own_data() -> Experiment:
    """Your own data: EoMT S from DINOv2 (--initial imagenet), squares of 512, 100 queries, 4000 steps."""
    model = published_model("small", 512, queries=100)
    experiment = coco(model)
    return replace(
        experiment,
        losses=LossConfig(points=3136),
        data=replace(experiment.data, jitter=ScaleJitter(low=0.5, high=2.0), color=0.5),
        training=replace(
            experiment.training,
            steps=4000,
            batch_size=8,
            learning_rate=2e-4,
            warmup_steps=100,
            backbone_warmup_steps=200,
            precision="32-true",
            evaluate_every=500,
            checkpoint_every=250,
        ),
    )


def eomt_tiny() -> Experiment:
    """For tests and first trials: EoMT with 0.6 million parameters, learns the generated shapes on a CPU."""
    backbone = VisionTransformerConfig(
        name="none",
        kind="dinov3",
        channels=96,
        blocks=6,
        heads=6,
        feedforward_channels=192,
        patch=8,
        registers=1,
        size=64,
    )
    return Experiment(
        model=EomtConfig(backbone=backbone, queries=13, query_blocks=3),
        losses=LossConfig(points=196),
        data=DataConfig(
            crop=(64, 64), jitter=ScaleJitter(low=0.7, high=1.4), resize=Square(size=64), padding="black"
        ),
        training=TrainingConfig(
            steps=200,
            batch_size=4,
            learning_rate=1e-3,
            backbone_multiplier=1.0,
            decay_everything=True,
            schedule="poly",
            warmup_steps=20,
            evaluate_every=100,
            checkpoint_every=50,
            log_every=10,
            workers=0,
        ),
    )


def _published(name: str, size: int, weights: Weights) -> tuple[str, Preset]:
    def preset() -> Experiment:
        return coco(published_model(name, size, weights))

    row = _PANOPTIC_QUALITY.get((name, size, weights))
    found = f"published PQ {row}" if row else "not published"
    origin = {"dinov2": "DINOv2", "dinov3": "DINOv3"}[weights]
    preset.__doc__ = f"COCO panoptic and instance, EoMT {name[0].upper()} at {size} from {origin}; {found}."
    return f"eomt_{name}_{size}" + ("_dinov3" if weights == "dinov3" else ""), preset


_PANOPTIC_QUALITY: Mapping[tuple[str, int, Weights], float] = {
    ("small", 640, "dinov2"): 46.7,
    ("base", 640, "dinov2"): 51.6,
    ("large", 640, "dinov2"): 56.0,
    ("giant", 640, "dinov2"): 57.0,
    ("giant", 1280, "dinov2"): 59.2,
    ("large", 1280, "dinov2"): 58.3,
    ("small", 640, "dinov3"): 47.2,
    ("base", 640, "dinov3"): 53.1,
    ("large", 640, "dinov3"): 56.8,
    ("large", 1280, "dinov3"): 58.9,
}
"""Published PQ of the released weights on COCO's val split, in percent."""


def eomt_large_512_ade20k() -> Experiment:
    """ADE20K semantic, EoMT L at 512 from DINOv2, 100 queries; published mIoU 58.4."""
    return ade20k_semantic(published_model("large", 512, queries=100))


def eomt_large_512_ade20k_dinov3() -> Experiment:
    """ADE20K semantic, EoMT L at 512 from DINOv3, 100 queries; published mIoU 59.5."""
    return ade20k_semantic(published_model("large", 512, "dinov3", queries=100))


def eomt_large_1024_cityscapes() -> Experiment:
    """Cityscapes semantic, EoMT L at 1024 from DINOv2, 100 queries; published mIoU 84.2."""
    return cityscapes_semantic(published_model("large", 1024, queries=100))


def eomt_large_640_ade20k_panoptic() -> Experiment:
    """ADE20K panoptic, EoMT L at 640 from DINOv2; published PQ 50.6."""
    return ade20k_panoptic(published_model("large", 640))


EOMT_PRESETS: Mapping[str, Preset] = {
    "eomt_own_data": eomt_own_data,
    "eomt_tiny": eomt_tiny,
    **dict(
        _published(name, size, weights)
        for weights in ("dinov2", "dinov3")
        for size in (640, 1280)
        for name in ("small", "base", "large")
    ),
    **dict(_published("giant", size, "dinov2") for size in (640, 1280)),
    "eomt_large_512_ade20k": eomt_large_512_ade20k,
    "eomt_large_512_ade20k_dinov3": eomt_large_512_ade20k_dinov3,
    "eomt_large_640_ade20k_panoptic": eomt_large_640_ade20k_panoptic,
    "eomt_large_1024_cityscapes": eomt_large_1024_cityscapes,
}
"""Name -> function that returns the experiment; part of `presets.PRESETS`."""

"""Every setting of the library: frozen dataclasses, one line of why per field.

The defaults are those of Mask2Former with ResNet-50 on COCO panoptic (arXiv 2112.01527, Sec. 4).
Modules take modules and numbers; a config is read where things are built, opened and started.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from unimask.config.values import (
    Below1,
    Count,
    CountOrNone,
    Factor,
    Layers,
    LayersOrNone,
    NotNegative,
    Positive,
    Share,
    Size,
    Width,
    WidthOrNone,
    settings_from_dict,
    settings_to_dict,
)
from unimask.errors import ConfigError, choices

Task = Literal["panoptic", "instance", "semantic", "detection"]
TASKS: tuple[Task, ...] = ("panoptic", "instance", "semantic")  # whose results are segments
Spread = Annotated[float, Field(ge=0.001, le=1_000_000)]
ALL_TASKS: tuple[Task, ...] = (*TASKS, "detection")  # whose results are boxes


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which network turns pixels into feature maps of strides 4, 8, 16 and 32."""

    # `swin_tiny|small|base|large`, `swin_c96_d2-2-6-2_h3-6-12-24_w7` (any other) and `resnet50|101_deeplab`
    # are ours; others timm's
    name: str = "resnet50"
    image_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB, 0..255: ImageNet
    image_std: tuple[Spread, Spread, Spread] = (58.395, 57.12, 57.375)  # RGB, 0..255
    freeze_norm: bool = True  # batch norms keep their statistics and weights (detectron2's FrozenBN)
    drop_path_rate: Below1 = 0.0  # stochastic depth; 0.3 for Swin in the paper
    dilated: bool = False  # the last stage keeps the size of the one before (DETR's "DC5"); ResNets only


@dataclass(frozen=True, kw_only=True)
class PixelDecoderConfig:
    """The multi-scale deformable attention pixel decoder (Sec. 3.2.2 and Sec. 4.1), or MaskFormer's."""

    # deformable: deformable attention over several maps, then a pyramid; pyramid: dense attention over the
    # coarsest map alone (`layers` may be 0), then a pyramid (MaskFormer, Sec. 4.1; Table 4e here)
    kind: Literal["deformable", "pyramid"] = "deformable"
    channels: Width = 256  # width of the encoder and of the maps it gives
    mask_channels: Width = 256  # width of the mask features (per-pixel embedding) at stride 4
    strides: tuple[int, ...] = (32, 16, 8)  # maps that the encoder refines, from low to high resolution
    layers: LayersOrNone = 6  # encoder layers
    heads: Width = 8  # attention heads
    points: Width = 4  # sampling points per head and level; of deformable attention
    feedforward_channels: Width = 1024  # hidden width of the encoder's feed-forward
    dropout: Below1 = 0.0  # in the encoder; 0.1 in MaskFormer
    # octaves of waves that tell the mask features their place, for images full of objects that look alike; 0
    # as in the paper. Waves of more than 10 octaves are finer than the cells of any map
    position_octaves: Annotated[int, Field(ge=0, le=10)] = 0


@dataclass(frozen=True, kw_only=True)
class QueryDecoderConfig:
    """The masked-attention decoder (Sec. 3.2). Its settings are the ablation axes of the paper's Table 4."""

    queries: Width = 100  # 200 for Swin-L panoptic and instance
    channels: Width = 256  # width of queries and memory
    heads: Width = 8  # attention heads
    feedforward_channels: Width = 2048  # hidden width of the feed-forward
    layers: LayersOrNone = 9  # three rounds over three strides
    dropout: Below1 = 0.0  # the paper takes dropout out (Sec. 3.2.3, Table 4b)
    memory_strides: tuple[int, ...] = (32, 16, 8)  # the memory of each layer, in turn (Sec. 3.2.2, Table 4d)
    level_embedding: bool = True  # a learned vector per stride is added to the memory (Sec. 3.2.2)
    visibility: Literal["masked", "full"] = "masked"  # masked attention (Sec. 3.2.1, Table 4c)
    order: tuple[Literal["cross", "self", "feedforward"], ...] = ("cross", "self", "feedforward")  # Table 4b
    query_features: Literal["learned", "zeros"] = "learned"  # learned features act as proposals (Table 4b)
    predict_before_layers: bool = True  # the query features themselves are supervised (Sec. 3.2.3)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A mask classification model: backbone, pixel decoder, query decoder."""

    kind: Literal["masks"] = "masks"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    pixel_decoder: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)
    query_decoder: QueryDecoderConfig = field(default_factory=QueryDecoderConfig)
    # masks: a query is a mask with a class; pixels: there is a query per category and each pixel chooses one
    # (the per-pixel baselines of MaskFormer, Sec. 4.1; with query_decoder.layers=0 without a Transformer)
    classification: Literal["masks", "pixels"] = "masks"


@dataclass(frozen=True, kw_only=True)
class DetrConfig:
    """DETR (arXiv 2005.12872): boxes, and with the mask head panoptic segments. Defaults are the paper's."""

    kind: Literal["detr"] = "detr"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    channels: Width = 256  # width of the transformer (Sec. A.4)
    heads: Width = 8  # attention heads
    feedforward_channels: Width = 2048  # hidden width of the feed-forwards
    dropout: Below1 = 0.1  # in encoder and decoder (Sec. 4)
    encoder_layers: Layers = 6  # over the map of the last stage (Sec. 4, Table 2)
    decoder_layers: Layers = 6  # each of them is supervised
    queries: Width = 100  # the most objects that an image can have
    mask_head: bool = False  # attention maps and a small feature pyramid (Sec. 4.2)
    stride: Literal[8, 16, 32] = 32  # of the backbone's map that the encoder takes; finer for small images
    # where cells are told their place: in queries and keys of each attention, as in the paper, or also once
    # in the encoder's input, for a backbone too shallow for every cell to receive something of the borders
    positions: Literal["attention", "input_and_attention"] = "attention"


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig:
    """The Vision Transformer of an EoMT. Defaults are those of DINOv2 L with registers, at patch 16."""

    name: str = "vit_large_patch14_reg4_dinov2"  # timm's name of the weights that a training starts from
    # dinov2: learned positions, for images of one size; dinov3: rotary ones, for any, and keys without bias
    kind: Literal["dinov2", "dinov3"] = "dinov2"
    channels: Width = 1024  # width of the tokens
    blocks: Layers = 24
    heads: Width = 16  # attention heads
    feedforward_channels: Width = 4096  # hidden width of the feed-forwards
    gated: bool = False  # feed-forwards multiply by gates (SwiGLU), as in DINOv2 g and DINOv3 S+
    patch: int = 16  # side of the square of pixels that becomes a token
    registers: WidthOrNone = 4  # tokens beside the class token that stand for nothing in the image
    size: int = 640  # side of the square images that learned positions are for
    image_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB, 0..255: ImageNet
    image_std: tuple[Spread, Spread, Spread] = (58.395, 57.12, 57.375)  # RGB, 0..255
    recompute: bool = False  # training keeps the inputs of blocks only: less memory, a third more time


@dataclass(frozen=True, kw_only=True)
class EomtConfig:
    """EoMT (arXiv 2503.19108): queries inside a plain Vision Transformer. Defaults are the paper's, L."""

    kind: Literal["eomt"] = "eomt"
    backbone: VisionTransformerConfig = field(default_factory=VisionTransformerConfig)
    queries: Width = 200  # 100 for semantic segmentation
    query_blocks: Layers = 4  # the last blocks, which queries take part in; 3 for S and B (Table 7)
    # annealed: masked at first, block by block less, and open when trained; masked: as Mask2Former, in
    # predictions too; open: never masked, and supervised after the last block only (Sec. 3.3, Table 3)
    attention: Literal["open", "masked", "annealed"] = "annealed"


def tasks_of(model: ModelConfig | EomtConfig | DetrConfig) -> tuple[Task, ...]:
    """Return the tasks that a model of this kind can do."""
    if isinstance(model, EomtConfig):
        return TASKS
    if isinstance(model, ModelConfig):
        # pixels that choose a category each tell no objects apart
        return TASKS if model.classification == "masks" else ("semantic",)
    return ("panoptic", "instance", "detection") if model.mask_head else ("detection",)


def queries_of(model: ModelConfig | EomtConfig | DetrConfig) -> int:
    """Return the most objects that a model finds in a view; for pixels that choose a category, any number."""
    if not isinstance(model, ModelConfig):
        return model.queries
    return model.query_decoder.queries if model.classification == "masks" else sys.maxsize


def check_task(task: str) -> None:
    """Check that there is such a task.

    Raises:
        ConfigError: there is not.
    """
    if task not in ALL_TASKS:
        raise ConfigError("task", f"{task!r} does not exist; {choices(task, ALL_TASKS)}")


AnyModelConfig = Annotated[ModelConfig | EomtConfig | DetrConfig, Field(discriminator="kind")]
"""The models there are; `kind` says which one an experiment has."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Matching and losses (Sec. 3.3 and Sec. 4.1); matching costs have the weights of the losses."""

    class_weight: NotNegative = 2.0  # cross-entropy over K + 1 classes
    mask_term: Literal["cross_entropy", "focal"] = "cross_entropy"  # focal in MaskFormer (Sec. 4.1)
    mask_weight: NotNegative = 5.0  # of the mask term
    dice_weight: NotNegative = 5.0  # Dice of the mask
    box_weight: NotNegative = 5.0  # L1 distance of the boxes, of models that predict them (DETR, Sec. A.4)
    overlap_weight: NotNegative = 2.0  # generalised IoU of the boxes (DETR, Sec. A.4)
    # Dice of each category over the batch, beside the cross-entropy of per-pixel classification, so that rare
    # and thin categories are not outvoted; 0, as in MaskFormer, is off
    category_dice_weight: NotNegative = 0.0
    # weight of the no-object class in the cross-entropy; 0 would leave nothing to average over where a batch
    # has no object
    no_object_weight: Positive = 0.1
    # masks are compared on sampled points, on every stride-4 cell (dense), or on every pixel of the target
    # as in MaskFormer (Table 5)
    sampling: Literal["points", "dense", "pixels"] = "points"
    points: Count = 12544  # 112 x 112 (Sec. 3.3)
    oversampling: Annotated[float, Field(ge=1)] = 3.0  # candidates per kept point (PointRend)
    importance: Share = 0.75  # share of points taken where the mask is least certain (PointRend)
    deep_supervision: bool = True  # every layer is supervised, not only the last


@dataclass(frozen=True, kw_only=True)
class ShortSide:
    """Resize so that the short side has `size` pixels, but the long side at most `longest`."""

    kind: Literal["short_side"] = "short_side"
    size: Size = 800
    longest: Size = 1333
    # to a multiple of `data.divisor` the image is padded, as in the originals, or stretched, as transformers
    # does, which also rounds sides down
    fit: Literal["pad", "stretch"] = "pad"


@dataclass(frozen=True, kw_only=True)
class Square:
    """Resize so that the long side has `size` pixels, and pad to a square (EoMT)."""

    kind: Literal["square"] = "square"
    size: Size = 640


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Resize by a fixed factor: for images whose pixels have a physical size (microscopy, satellites)."""

    kind: Literal["scale"] = "scale"
    factor: Factor = 1.0


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Resize to one size, whatever the aspect of the image (transformers' `height` and `width`)."""

    kind: Literal["exact"] = "exact"
    height: Size = 512
    width: Size = 512


AnyResize = Annotated[ShortSide | Square | Scale | Exact, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The model gets the whole image at once."""

    kind: Literal["whole"] = "whole"


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The model gets overlapping squares of an image; results are joined (`inference/stitching.py`)."""

    kind: Literal["tiles"] = "tiles"
    size: Size = 512  # side of a square in pixels of the file; each is then resized like an image
    # pixels that neighbours share at least; as wide as most objects
    overlap: CountOrNone = 128


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """The model gets overlapping squares of the resized image; the values of categories are averaged.

    For semantic segmentation, as EoMT and others do it: with `overlap` 0 as few squares as cover the image,
    spread evenly (`inference/joining.py:AveragedWindows`).
    """

    kind: Literal["sliding_window"] = "sliding_window"
    size: Size = 512  # side of a square in pixels of the resized image
    overlap: CountOrNone = 0  # pixels that neighbours share at least


AnyView = Annotated[Whole | Tiles | SlidingWindow, Field(discriminator="kind")]


def why_not_joined(view: Whole | Tiles | SlidingWindow, task: Task) -> str:
    """Return why the parts of an image cannot be joined to a result of the task; empty if they can."""
    if isinstance(view, Tiles) and task == "detection":
        return "boxes of tiles are not joined; take {'kind': 'whole'} for detection"
    if isinstance(view, SlidingWindow) and task != "semantic":
        return (
            "sliding windows are joined by averaging the values of categories, which is for semantic "
            f"segmentation; take {{'kind': 'whole'}} for {task}"
        )
    return ""


@dataclass(frozen=True, kw_only=True)
class ScaleJitter:
    """Random resizing before the crop: a factor drawn uniformly from [low, high]."""

    low: Factor = 0.1
    high: Factor = 2.0
    # crop: the image fits into factor x crop (large-scale jitter); short_side: its short side becomes
    # factor x the crop's (semantic training); file: factor x its own size (pixels of a physical size)
    relative_to: Literal["crop", "short_side", "file"] = "crop"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How images reach the model."""

    crop: tuple[Size, Size] = (1024, 1024)  # (height, width) of a training image; smaller ones are padded
    jitter: ScaleJitter = field(default_factory=ScaleJitter)
    horizontal_flip: Share = 0.5  # probability
    vertical_flip: Share = 0.0  # probability; 0.5 where up and down mean nothing
    transpose: Share = 0.0  # probability that rows become columns; with both flips: turns by 90 degrees
    # strength of the brightness, contrast, saturation and hue jitter; 0 is off
    color: Annotated[float, Field(ge=0, le=100)] = 0.0
    # half of the images each get a gamma curve of an exponent from 2 ** -gamma to 2 ** gamma, are blurred
    # with a sigma up to `blur` pixels, or get noise with a standard deviation up to `noise` (of 255)
    gamma: Annotated[float, Field(ge=0, le=4)] = 0.0
    blur: Annotated[float, Field(ge=0, le=16)] = 0.0
    noise: Annotated[float, Field(ge=0, le=255)] = 0.0
    # of an image to predict on
    resize: AnyResize = field(default_factory=ShortSide)
    # tiles where one view holds more objects than queries; sliding windows for semantic segmentation
    view: AnyView = field(default_factory=Whole)
    divisor: Size = 32  # the canvas is padded to a multiple of it
    padding: Literal["mean", "black"] = "mean"  # its color: the mean of all images; black in EoMT
    background: bool = True  # data without stuff gets a category "background" for panoptic and semantic
    follow_outside: bool = False  # read files outside of the data folder that names or links lead to
    # of images with an EXIF orientation. exif: turned as it says; stored: as the pixels lie in the file;
    # auto: whichever has the sizes that the labels state, decided once for a set
    orientation: Literal["auto", "exif", "stored"] = "auto"
    # bits of the camera where files have 16 a channel: its largest value becomes 255. auto: 8, 12 or 16 by
    # the brightest of a set or a run; a model keeps what its training set had
    depth: Literal["auto"] | Annotated[int, Field(ge=8, le=16)] = "auto"
    # of files with several images (stacks, animations): which one, or the largest value of all
    page: Literal["first", "max"] | Annotated[int, Field(ge=1)] = "first"
    # colors: RGB or grey, of other files the first channel; else the number of one, or the largest value of
    # all
    channel: Literal["colors", "max"] | Annotated[int, Field(ge=1)] = "colors"


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """How a prediction is postprocessed."""

    object_threshold: Share = 0.8  # panoptic: a query's score must be above it; 0 for Mapillary
    overlap_threshold: Share = 0.8  # panoptic: visible share of the query's own mask
    # panoptic: a segment has the pixels of its query that lie in the query's mask (probability 0.5 or more),
    # or all that the query wins, as in MaskFormer
    fill: Literal["mask", "winner"] = "mask"
    # semantic: the values of the classes are resized to the image instead of the masks, as the originals do
    # for models that do nothing else
    resize_classes: bool = False
    duplicate_iou: float = 1.0  # queries of one class that overlap more are one; 1: off, as in the papers
    max_instances: Annotated[int, Field(ge=1, le=32_767)] = 100  # instance: the best (query, class) pairs
    # instance: results with a score below it are left out (AP takes them all)
    instance_threshold: Share = 0.5


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The optimiser, its schedule and the bookkeeping (Sec. 4.1)."""

    steps: Count = 368_750  # optimiser steps; 50 epochs of COCO at batch 16
    # images per optimiser step, over all processes and accumulation steps
    batch_size: Count = 16
    accumulate: Count = 1  # forward-backward passes per optimiser step
    learning_rate: Positive = 1e-4
    weight_decay: NotNegative = 0.05
    backbone_multiplier: NotNegative = 0.1  # of the learning rate
    gradient_clip: Positive = 0.01  # largest norm of the gradient of all parameters
    betas: tuple[Below1, Below1] = (0.9, 0.999)  # of Adam: decay of the means of gradient and its square
    epsilon: Positive = 1e-8  # of Adam
    schedule: Literal["step", "poly", "noam"] = "step"
    # of the learning rate, from each block of a Vision Transformer to the one before it; 1: all learn alike
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    query_blocks_decay: bool = True  # it also falls in the blocks of an EoMT that have queries
    decay_everything: bool = False  # norms and embeddings decay as well (EoMT)
    milestones: tuple[float, ...] = (0.8889, 0.9630)  # step: after these shares the rate falls tenfold
    power: float = 0.9  # poly
    warmup_steps: CountOrNone = 10  # linear, from zero
    # the backbone stands still during the warm-up of the rest, and then has one of so many steps (EoMT)
    backbone_warmup_steps: CountOrNone = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    ema_decay: Below1 = 0.0  # exponential moving average of the weights; 0 is off
    evaluate_every: CountOrNone = 5000  # steps
    checkpoint_every: Count = 1000  # steps
    log_every: Count = 20  # steps
    workers: CountOrNone = 2  # loader processes
    # of several processes: ddp, each has the whole model; fsdp, each keeps a part of weights and optimiser
    strategy: Literal["ddp", "fsdp"] = "ddp"
    seed: CountOrNone = 0


def warnings_of_settings(config: TrainingConfig) -> tuple[str, ...]:
    """Return what can hardly be meant: a run that ends while its learning rate still rises."""
    warmup = config.warmup_steps + config.backbone_warmup_steps
    if config.steps > warmup:
        return ()
    return (
        f"the warm-up takes {warmup} steps, and the run ends after {config.steps}: the learning rate never "
        "reaches its value; lower training.warmup_steps or raise training.steps",
    )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that names a run: a preset is a function that gives one."""

    model: AnyModelConfig = field(default_factory=ModelConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def experiment_to_dict(experiment: Experiment) -> dict[str, object]:
    """Return the experiment as plain values, ready for JSON; `experiment_from_dict` is its inverse."""
    return settings_to_dict(experiment)


def experiment_from_dict(values: dict[str, object]) -> Experiment:
    """Return the experiment that plain values describe; missing keys take their defaults.

    Raises:
        ConfigError: a key is unknown (all of them are named), or a value has the wrong type or is impossible.
    """
    experiment = settings_from_dict(Experiment, values)
    view = experiment.data.view
    if not isinstance(view, Whole) and view.overlap >= view.size:
        raise ConfigError("data.view.overlap", f"must be below data.view.size; got {view.overlap}")
    _check_sizes(experiment)
    return experiment


def _check_sizes(experiment: Experiment) -> None:
    """Check that an EoMT gets images that its patches and positions fit."""
    model, data = experiment.model, experiment.data
    if not isinstance(model, EomtConfig):
        return
    patch, size = model.backbone.patch, model.backbone.size
    if model.backbone.kind == "dinov2":
        reason = f"the model has positions for squares of {size} pixels (model.backbone.size)"
        if data.crop != (size, size):
            raise ConfigError("data.crop", f"{reason}; got {data.crop}, take ({size}, {size})")
        if isinstance(data.view, SlidingWindow):
            if data.view.size != size:
                raise ConfigError("data.view.size", f"{reason}; got {data.view.size}, take {size}")
        elif data.resize != Square(size=size):
            raise ConfigError("data.resize", f"{reason}; take {{'kind': 'square', 'size': {size}}}")
    sides = {"data.divisor": (data.divisor,), "data.crop": data.crop}
    if isinstance(data.view, SlidingWindow):
        sides["data.view.size"] = (data.view.size,)
    if isinstance(data.resize, Square):
        sides["data.resize.size"] = (data.resize.size,)
    for path, lengths in sides.items():
        if any(length % patch for length in lengths):
            raise ConfigError(path, f"must be a multiple of {patch} (model.backbone.patch); got {lengths}")

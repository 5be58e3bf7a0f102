"""Settings of models that find segments or boxes in images: one dataclass for each kind of model.

The defaults of a kind are those of its paper.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from unimask.config.tasks import TASKS, Task
from unimask.config.values import Below1, Layers, LayersOrNone, Width, WidthOrNone

Spread = Annotated[float, Field(ge=0.001, le=1_000_000)]


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


AnyModelConfig = Annotated[ModelConfig | EomtConfig | DetrConfig, Field(discriminator="kind")]
"""The models there are; `kind` says which one an experiment has."""


def tasks_of(model: ModelConfig | EomtConfig | DetrConfig) -> tuple[Task, ...]:
    """Return the tasks that a model of this kind can do."""
    if isinstance(model, EomtConfig):
        return TASKS
    if isinstance(model, ModelConfig):
        # per-pixel classification tells no objects apart
        return TASKS if model.classification == "masks" else ("semantic",)
    return ("panoptic", "instance", "detection") if model.mask_head else ("detection",)


def queries_of(model: ModelConfig | EomtConfig | DetrConfig) -> int:
    """Return the most objects that a model finds in a view; any number with per-pixel classification."""
    if not isinstance(model, ModelConfig):
        return model.queries
    return model.query_decoder.queries if model.classification == "masks" else sys.maxsize

"""Settings of losses and of training."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from unimask.config.values import Below1, Count, CountOrNone, NotNegative, Positive, Share


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
        f"the warm-up ends after step {warmup}, and the run after step {config.steps}: the learning rate "
        "never reaches its value; lower training.warmup_steps or raise training.steps",
    )

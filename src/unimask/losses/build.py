"""Construction of the criterion from its config."""

from typing import Any, Literal

from torch import Tensor

from unimask.config.models import AnyModelConfig, DetrConfig, ModelConfig
from unimask.config.training import LossConfig
from unimask.config.values import check_values
from unimask.losses.box_comparison import BoxComparison
from unimask.losses.box_mask_comparison import BoxMaskComparison
from unimask.losses.criterion import Average, Criterion
from unimask.losses.mask_comparison import MaskComparison
from unimask.losses.pixels import PixelCriterion
from unimask.losses.sampling import EveryCell, EveryPixel, RandomPoints, Sampling
from unimask.losses.terms import BoxOverlapTerm, BoxTerm, ClassTerm, DiceTerm, FocalTerm, MaskTerm

Kind = Literal["masks", "pixels", "boxes", "boxes_and_masks"]
"""What a model predicts; "boxes_and_masks" has boxes of every layer and masks of the last."""

MASK_TERMS = {"cross_entropy": MaskTerm, "focal": FocalTerm}


def one_process(number: Tensor) -> Tensor:
    """Return `number`, which is its mean over processes if there is only one."""
    return number


def build_criterion(
    config: LossConfig, num_classes: int, average: Average = one_process, *, kind: Kind = "masks"
) -> Criterion[Any, Any] | PixelCriterion:
    """Return the criterion of a model that predicts `kind`, for K = `num_classes` real classes.

    `average` returns the mean of a number over all training processes.

    Raises:
        ConfigError: a setting has an invalid value.
    """
    check_values(config, "losses")
    if kind == "pixels":
        return PixelCriterion(config.class_weight, config.category_dice_weight, config.deep_supervision)
    return Criterion(
        class_term=ClassTerm(num_classes, config.no_object_weight, config.class_weight),
        comparison=_comparison(config, kind),
        deep_supervision=config.deep_supervision,
        average=average,
    )


def kind_of(model: AnyModelConfig) -> Kind:
    """Return what a model predicts, which decides its criterion."""
    if isinstance(model, DetrConfig):
        return "boxes_and_masks" if model.mask_head else "boxes"
    return model.classification if isinstance(model, ModelConfig) else "masks"


def _comparison(config: LossConfig, kind: Kind) -> MaskComparison | BoxComparison | BoxMaskComparison:
    if kind == "masks":
        return _mask_comparison(config)
    boxes = _box_comparison(config)
    return boxes if kind == "boxes" else BoxMaskComparison(boxes=boxes, masks=_mask_comparison(config))


def _box_comparison(config: LossConfig) -> BoxComparison:
    terms = (BoxTerm(weight=config.box_weight), BoxOverlapTerm(weight=config.overlap_weight))
    return BoxComparison(terms=terms)


def _mask_comparison(config: LossConfig) -> MaskComparison:
    mask_term = MASK_TERMS[config.mask_term](weight=config.mask_weight)
    terms = (mask_term, DiceTerm(weight=config.dice_weight))
    return MaskComparison(terms=terms, sampling=_sampling(config))


def _sampling(config: LossConfig) -> Sampling:
    points = RandomPoints(
        points=config.points,
        candidates=int(config.points * config.oversampling),
        uncertain=int(config.points * config.importance),
    )
    samplings: dict[str, Sampling] = {"points": points, "dense": EveryCell(), "pixels": EveryPixel()}
    return samplings[config.sampling]

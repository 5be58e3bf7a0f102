"""The learning rate as a function of the step, without state to save and restore."""

from unimask.config.training import TrainingConfig


def learning_rate_factor(step: int, config: TrainingConfig, *, in_backbone: bool = False) -> float:
    """Return the factor in [0, 1] of the learning rates in step `step` (counted from 0).

    Step schedule: a tenth after each milestone, which is a share of all steps. Poly schedule:
    `(1 - step / steps) ** power`. Both are multiplied with a linear warm-up: it is a line through zero before
    the first step that reaches 1 in step `warmup_steps`, so that the first step already moves the weights.

    Source: Mask2Former, Sec. 4.1 (step: COCO; poly with power 0.9: ADE20K, Cityscapes, Mapillary). The
    original warms up too, but from 1 (that is, not at all); `warmup_steps=0` does the same.

    With `backbone_warmup_steps` the backbone stands still until the warm-up of the rest is over, and then has
    one of its own; the poly schedule begins after each of the two. Source: the original code of EoMT.

    Noam schedule: up in a line during the warm-up, then down with the inverse square root of the step; the
    factor is 1 at step `warmup_steps` (counted from 1). The paper's rate has its peak, with 4000 steps, at
    (channels x 4000) ** -0.5, which is 7e-4 for 512 channels.

    Source: Attention Is All You Need, Sec. 5.3, Eq. 3.
    """
    if config.backbone_warmup_steps:
        return _two_stage_factor(step, config, in_backbone=in_backbone)
    if config.schedule == "noam":
        warmup = max(1, config.warmup_steps)
        return min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5)
    if config.schedule == "poly":
        factor = max(0.0, 1.0 - step / config.steps) ** config.power
    else:
        passed = sum(step >= round(milestone * config.steps) for milestone in config.milestones)
        factor = 0.1**passed
    if step < config.warmup_steps:
        factor *= (step + 1) / config.warmup_steps
    return factor


def _two_stage_factor(step: int, config: TrainingConfig, *, in_backbone: bool) -> float:
    """Return the factor where the backbone warms up after the rest of the model."""
    still = config.warmup_steps if in_backbone else 0
    warmup = config.backbone_warmup_steps if in_backbone else config.warmup_steps
    if step < still + warmup:
        return max(0.0, (step + 1 - still) / warmup)
    after = still + warmup
    return max(0.0, 1.0 - (step - after) / max(1, config.steps - after)) ** config.power

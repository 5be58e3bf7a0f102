"""How an EoMT is called in a training step: a function of the step, without state.

Masked attention ends during the training, and rotary positions have a random scale.
"""

from functools import partial

from unimask.config.images import Experiment
from unimask.config.models import EomtConfig
from unimask.models.build import Model
from unimask.models.build_eomt import PREDICTED_WITH
from unimask.models.eomt import AnnealedAttention, AttentionRule, Eomt
from unimask.nn.vit import Scale
from unimask.structures import ImageBatch, Prediction, Uniform
from unimask.training.step import Forward, as_predicted

FIRST, LAST = 1 / 6, 2 / 3  # where the annealing of the first and of the last block begins
LENGTH = 1 / 6
POWER = 0.9
LARGEST_SCALE = 2.0  # of rotary positions
"""Shares of the run, and the exponent.

Source: the configurations of EoMT. They give steps, and these shares of their runs: four blocks that follow
one another, or three with gaps between them."""


def mask_chances(step: int, steps: int, blocks: int) -> tuple[float, ...]:
    """Return for each block with queries, in a step counted from 0, the chance of a query to keep its mask.

    It is 1 until the annealing of the block begins, falls as `(1 - progress) ** 0.9`, and is 0 from then on.

    Source: EoMT (2503.19108), Sec. 3.3 and its code.
    """
    begins = [FIRST + (LAST - FIRST) * block / max(1, blocks - 1) for block in range(blocks)]
    progress = [(step / steps - begin) / LENGTH for begin in begins]
    return tuple((1.0 - min(1.0, max(0.0, share))) ** POWER for share in progress)


def forward_in_step(experiment: Experiment, step: int, uniform: Uniform) -> Forward:
    """Return the function that calls the model in a training step, if annealed with the chances of the step.

    Rotary positions are scaled by a random number from 1/2 to 2, whose logarithm is uniform.

    Source: DINOv3, whose positions are trained so; EoMT keeps it.
    """
    model = experiment.model
    if not isinstance(model, EomtConfig):
        return as_predicted
    rule: AttentionRule = PREDICTED_WITH[model.attention]
    if model.attention == "annealed":
        chances = mask_chances(step, experiment.training.steps, model.query_blocks)
        rule = AnnealedAttention(chances=chances, uniform=uniform)
    scale = LARGEST_SCALE ** (2 * uniform((1,)) - 1) if model.backbone.kind == "dinov3" else 1.0
    return partial(_with_rule, rule, scale)


def _with_rule(rule: AttentionRule, scale: Scale, model: Model, images: ImageBatch) -> Prediction:
    assert isinstance(model, Eomt)
    return model.predict(images.pixels, rule, scale)

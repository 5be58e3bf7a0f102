"""How masked attention ends during a training: a function of the step, so that nothing has to be kept."""

from functools import partial

from unimask.config.images import EomtConfig, Experiment
from unimask.models.build import Model
from unimask.models.eomt import AnnealedAttention, AttentionRule, Eomt
from unimask.structures import ImageBatch, Prediction, Uniform
from unimask.training.step import Forward, as_predicted

FIRST, LAST = 1 / 6, 2 / 3  # where the annealing of the first and of the last block begins
LENGTH = 1 / 6
POWER = 0.9
"""Shares of the run, and the exponent.

Source: the configurations of EoMT. They give steps, and these shares of their runs: four blocks that follow
one another, or three with gaps between them."""


def mask_chances(step: int, steps: int, blocks: int) -> tuple[float, ...]:
    """Return for each block with queries, in a step counted from 0, the chance of a query to keep its mask.

    It is 1 until the block's turn comes, falls as `(1 - progress) ** 0.9`, and is 0 from then on.

    Source: EoMT (2503.19108), Sec. 3.3 and its code.
    """
    begins = [FIRST + (LAST - FIRST) * block / max(1, blocks - 1) for block in range(blocks)]
    progress = [(step / steps - begin) / LENGTH for begin in begins]
    return tuple((1.0 - min(1.0, max(0.0, share))) ** POWER for share in progress)


def forward_in_step(experiment: Experiment, step: int, uniform: Uniform) -> Forward:
    """Return how the model is called in a training step: an annealed one with the chances of that step."""
    model = experiment.model
    if not isinstance(model, EomtConfig) or model.attention != "annealed":
        return as_predicted
    chances = mask_chances(step, experiment.training.steps, model.query_blocks)
    return partial(_with_rule, AnnealedAttention(chances=chances, uniform=uniform))


def _with_rule(rule: AttentionRule, model: Model, images: ImageBatch) -> Prediction:
    assert isinstance(model, Eomt)
    return model.predict(images.pixels, rule)

"""Presets by name, and what trains them."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING

from unimask.errors import ConfigError

if TYPE_CHECKING:
    from unimask.config.images import Experiment
    from unimask.config.text import TranslationExperiment
    from unimask.training.result import TrainingResult


def training_of(
    preset: str, changes: dict[str, object], task: str
) -> "tuple[Callable[..., TrainingResult], str]":
    """What trains the model of a preset, and how to try what comes out.

    Raises:
        ConfigError: there is no such preset or setting.
    """
    from unimask.config.images import ALL_TASKS, override
    from unimask.config.text import TranslationExperiment, override_translation

    experiment = preset_of(preset)
    if isinstance(experiment, TranslationExperiment):
        from unimask.training.text_job import train_translation

        changed = override_translation(experiment, changes)
        return partial(train_translation, changed), 'unimask translate "A sentence." --weights {model}'
    from unimask.training.loop import train as train_masks

    known = next(one for one in ALL_TASKS if one == task)
    trial = f"unimask predict PICTURE --weights {{model}} --task {task}"
    return partial(train_masks, override(experiment, changes), known), trial


def preset_of(name: str) -> "Experiment | TranslationExperiment":
    """The experiment of a name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    from unimask.presets import PRESETS, TRANSLATION_PRESETS

    every: dict[str, Callable[[], Experiment | TranslationExperiment]] = {**PRESETS, **TRANSLATION_PRESETS}
    if name not in every:
        near = get_close_matches(name, every, 3, 0.6) or ["small", "tiny"]
        raise ConfigError(name, f"no such preset; is it {' or '.join(near)}? `unimask presets` lists them")
    return every[name]()

"""Some settings of an experiment changed, by their dotted paths."""

from collections.abc import Mapping
from typing import overload

from unimask.config.images import Experiment, experiment_from_dict, experiment_to_dict
from unimask.config.text import TranslationExperiment, translation_from_dict, translation_to_dict
from unimask.config.values import with_changes


@overload
def override(experiment: Experiment, changes: Mapping[str, object]) -> Experiment: ...


@overload
def override(experiment: TranslationExperiment, changes: Mapping[str, object]) -> TranslationExperiment: ...


def override(
    experiment: Experiment | TranslationExperiment, changes: Mapping[str, object]
) -> Experiment | TranslationExperiment:
    """Return the experiment with some settings changed, each named by its dotted path (`training.steps`).

    Raises:
        ConfigError: no setting has this path, or the value has the wrong type or is impossible.
    """
    if isinstance(experiment, Experiment):
        return experiment_from_dict(with_changes(experiment_to_dict(experiment), changes))
    return translation_from_dict(with_changes(translation_to_dict(experiment), changes))

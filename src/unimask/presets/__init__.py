"""Named experiments.

The presets named after a data set, a task and a backbone (`coco_panoptic_resnet50`) have the settings of
the original release; `small` is for your own data on a modest machine. A preset's description is the
first line of its docstring.
"""

from collections.abc import Callable, Mapping

from unimask.config.images import Experiment
from unimask.config.text import TranslationExperiment
from unimask.errors import ConfigError, nearest
from unimask.presets import mask2former, maskformer
from unimask.presets.detr import DETR_PRESETS
from unimask.presets.eomt import EOMT_PRESETS
from unimask.presets.own_data import nuclei, small, street, tiny
from unimask.presets.shared import BACKBONES, DEEPLAB_BACKBONES, Preset
from unimask.presets.transformer import TRANSLATION_PRESETS

__all__ = ["PRESETS", "TRANSLATION_PRESETS", "Preset", "description", "named"]


def _published(title: str, build: Callable[[str], Experiment], backbone: str) -> Preset:
    def preset() -> Experiment:
        return build(backbone)

    name = {**BACKBONES, **DEEPLAB_BACKBONES}[backbone]
    preset.__doc__ = f"{title}, {name}: as in the original release, in float32."
    return preset


PRESETS: Mapping[str, Preset] = {
    "small": small,
    "nuclei": nuclei,
    "street": street,
    "tiny": tiny,
    **DETR_PRESETS,
    **EOMT_PRESETS,
    **{
        f"{name}_{backbone}": _published(title, build, backbone)
        for name, (title, build, backbones) in {**mask2former.PUBLISHED, **maskformer.PUBLISHED}.items()
        for backbone in backbones
    },
}
"""Name -> function that returns the experiment, for models of images."""

_EVERY: Mapping[str, Callable[[], Experiment | TranslationExperiment]] = {**PRESETS, **TRANSLATION_PRESETS}


def named(name: str) -> Experiment | TranslationExperiment:
    """Return the experiment called `name`, of images or of text.

    Raises:
        ConfigError: there is no such preset; the message suggests the nearest name.
    """
    if name not in _EVERY:
        near = nearest(name, _EVERY) or "is it small or tiny? "
        raise ConfigError(name, f"no such preset; {near}`unimask presets` lists them")
    return _EVERY[name]()


def description(name: str) -> str:
    """Return the description of a preset: the first line of its docstring."""
    return (_EVERY[name].__doc__ or "").strip().splitlines()[0]

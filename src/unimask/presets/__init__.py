"""Named experiments as functions.

The presets named after a data set, a task and a backbone (`coco_panoptic_resnet50`) have the settings of
the original release; `small` is for people's own data on a modest machine. A preset's description is the
first line of its docstring.
"""

from collections.abc import Callable, Mapping

from unimask.config.images import Experiment
from unimask.presets import mask2former, maskformer
from unimask.presets.detr import DETR_PRESETS
from unimask.presets.eomt import EOMT_PRESETS
from unimask.presets.own_data import nuclei, small, tiny
from unimask.presets.shared import BACKBONES, DEEPLAB_BACKBONES, Preset
from unimask.presets.transformer import TRANSLATION_PRESETS

__all__ = ["PRESETS", "TRANSLATION_PRESETS", "Preset", "description"]


def _published(title: str, build: Callable[[str], Experiment], backbone: str) -> Preset:
    def preset() -> Experiment:
        return build(backbone)

    name = {**BACKBONES, **DEEPLAB_BACKBONES}[backbone]
    preset.__doc__ = f"{title}, {name}: as the original release, in float32."
    return preset


PRESETS: Mapping[str, Preset] = {
    "small": small,
    "nuclei": nuclei,
    "tiny": tiny,
    **DETR_PRESETS,
    **EOMT_PRESETS,
    **{
        f"{name}_{backbone}": _published(title, build, backbone)
        for name, (title, build, backbones) in {**mask2former.PUBLISHED, **maskformer.PUBLISHED}.items()
        for backbone in backbones
    },
}
"""Name -> function that gives the experiment."""


def description(name: str) -> str:
    """What the preset is for: the first line of its docstring."""
    return ({**PRESETS, **TRANSLATION_PRESETS}[name].__doc__ or "").strip().splitlines()[0]

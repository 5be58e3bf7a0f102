"""An experiment on images: settings of model, losses, data, postprocessing and training.

Settings are frozen dataclasses, with one line of why per field. Their defaults are those of Mask2Former with
ResNet-50 on COCO panoptic (arXiv 2112.01527, Sec. 4). Modules take modules and numbers; a config is read
where things are built, opened and started.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from unimask.config.data import DataConfig, SlidingWindow, Square, Whole
from unimask.config.models import AnyModelConfig, EomtConfig, ModelConfig
from unimask.config.training import LossConfig, TrainingConfig
from unimask.config.values import Share, settings_from_dict, settings_to_dict
from unimask.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """How a prediction is postprocessed."""

    object_threshold: Share = 0.8  # panoptic: a query's score must be above it; 0 for Mapillary
    overlap_threshold: Share = 0.8  # panoptic: visible share of the query's own mask
    # panoptic: a segment has the pixels of its query that lie in the query's mask (probability 0.5 or more),
    # or all that the query wins, as in MaskFormer
    fill: Literal["mask", "winner"] = "mask"
    # semantic: the values of the classes are resized to the image instead of the masks, as the originals do
    # for models that do nothing else
    resize_classes: bool = False
    duplicate_iou: float = 1.0  # queries of one class that overlap more are one; 1: off, as in the papers
    max_instances: Annotated[int, Field(ge=1, le=32_767)] = 100  # instance: the best (query, class) pairs
    # instance: results with a score below it are left out (AP takes them all)
    instance_threshold: Share = 0.5


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that names a run: a preset is a function that gives one."""

    model: AnyModelConfig = field(default_factory=ModelConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def experiment_to_dict(experiment: Experiment) -> dict[str, object]:
    """Return the experiment as plain values, ready for JSON; `experiment_from_dict` is its inverse."""
    return settings_to_dict(experiment)


def experiment_from_dict(values: dict[str, object]) -> Experiment:
    """Return the experiment that plain values describe; missing keys take their defaults.

    Raises:
        ConfigError: a key is unknown (all of them are named), or a value has the wrong type or is impossible.
    """
    experiment = settings_from_dict(Experiment, values)
    view = experiment.data.view
    if not isinstance(view, Whole) and view.overlap >= view.size:
        raise ConfigError("data.view.overlap", f"must be below data.view.size; got {view.overlap}")
    _check_sizes(experiment)
    return experiment


def _check_sizes(experiment: Experiment) -> None:
    """Check that an EoMT gets images that its patches and positions fit."""
    model, data = experiment.model, experiment.data
    if not isinstance(model, EomtConfig):
        return
    patch, size = model.backbone.patch, model.backbone.size
    if model.backbone.kind == "dinov2":
        reason = f"the model has positions for squares of {size} pixels (model.backbone.size)"
        if data.crop != (size, size):
            raise ConfigError("data.crop", f"{reason}; got {data.crop}, take ({size}, {size})")
        if isinstance(data.view, SlidingWindow):
            if data.view.size != size:
                raise ConfigError("data.view.size", f"{reason}; got {data.view.size}, take {size}")
        elif data.resize != Square(size=size):
            raise ConfigError("data.resize", f"{reason}; take {{'kind': 'square', 'size': {size}}}")
    sides = {"data.divisor": (data.divisor,), "data.crop": data.crop}
    if isinstance(data.view, SlidingWindow):
        sides["data.view.size"] = (data.view.size,)
    if isinstance(data.resize, Square):
        sides["data.resize.size"] = (data.resize.size,)
    for path, lengths in sides.items():
        if any(length % patch for length in lengths):
            raise ConfigError(path, f"must be a multiple of {patch} (model.backbone.patch); got {lengths}")

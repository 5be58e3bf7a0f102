"""The initial weights of a training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from unimask.checkpoints.images import ModelFile, load_model
from unimask.config.models import AnyModelConfig, ModelConfig
from unimask.config.values import settings_to_dict
from unimask.conversion.hub import check_trainable, find_model
from unimask.conversion.imagenet import ImageNetSource, load_imagenet
from unimask.errors import WeightsError
from unimask.models.build import Model
from unimask.models.detr import Detr
from unimask.models.detr_masks import DetrWithMasks
from unimask.structures import Categories
from unimask.training.category_rows import rows_for, take_rows
from unimask.training.run_folder import flatten

IMAGENET = "imagenet"
_DETECTOR = "detr."  # where a `DetrWithMasks` has its detector
_CLASS_HEAD = tuple(
    f"{decoder}heads.classes.{name}" for decoder in ("query_decoder.", "") for name in ("weight", "bias")
)
_OF_PIXELS = tuple(f"query_decoder.{name}weight" for name in ("", "query_features.", "query_positions."))
"""What has a row for each category in a model of per-pixel classification."""


def is_model(initial: str | Path | None) -> bool:
    """Return whether `initial` names a model to go on from, not ImageNet's weights of a backbone or none."""
    return initial is not None and str(initial).partition(":")[0] != IMAGENET


_COUNTER = ".num_batches_tracked"


def load_initial(
    model: Model,
    config: AnyModelConfig,
    categories: Categories,
    initial: str | Path | None,
    renamed: Mapping[str, str] = MappingProxyType({}),
    say: Callable[[str], object] = lambda text: None,
) -> str:
    """Fill the model in place with its initial weights; return a sentence for the provenance.

    `initial` is None (the weights stay random), `imagenet` (the backbone's weights from ImageNet; of an EoMT,
    DINOv2's or DINOv3's by timm's name in `model.backbone.name`) or `imagenet:FILE` (from a file), or a model
    as `conversion.hub.find_model` takes it, whose categories may differ.
    Of another model, the rows of the class head are taken by the name of the category, or as `renamed` (the
    model's name -> that of the data) says; a category that it does not have keeps its random row, and "no
    object" is always taken. `say` is called with a sentence and a table about them. A DETR without a mask
    head may start one with it, which then keeps its random mask head (DETR, Sec. 4.2: boxes first). A mask
    classifier may have more queries or octaves of positions than the other: see `_more_queries` and
    `_more_octaves`.

    Raises:
        WeightsError: the weights are not there, or belong to another architecture.
        ConfigError: `renamed` names a category that is not there.
    """
    if initial is None:
        return "random"
    if not is_model(initial):
        _, _, file = str(initial).partition(":")
        source: ImageNetSource = Path(file) if file else "automatic"
        return f"backbone from {load_imagenet(config.backbone.name, model.backbone, source)}"
    check_trainable(initial)
    folder = find_model(initial)
    other, other_file = load_model(folder)
    own = model.state_dict()
    theirs = other.state_dict()
    if isinstance(model, DetrWithMasks) and isinstance(other, Detr):
        # the mask head is added to a detector, and starts at random
        detector = {f"{_DETECTOR}{key}": value for key, value in theirs.items()}
        theirs = {key: value for key, value in own.items() if not key.startswith(_DETECTOR)} | detector
    found = rows_for(categories, other_file.categories, renamed)
    pixels = isinstance(config, ModelConfig) and config.classification == "pixels"
    by_category = _OF_PIXELS if pixels else _CLASS_HEAD
    for key in [key for key in theirs if key in own and key.removeprefix(_DETECTOR) in by_category]:
        theirs[key] = take_rows(own[key], theirs[key], found.rows)
    theirs = _fitted(own, theirs)
    _check_same(folder, own, theirs, config, other_file)
    model.load_state_dict(theirs)
    known = f"{found.known} of {len(categories)} categories"
    say(f"starts from {initial}: its architecture, its weights, and what it learned of {known}")
    say(found.table())
    name = folder.parent.name if folder.name in ("best", "model") else folder.name  # of a run, the run's
    return f"the model {name} ({known} known to it)"


def _fitted(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors fitted to a model that may differ: more queries or octaves, norms frozen or not."""
    fitted = dict(theirs)
    for key, grow in _GROWING.items():
        if key in own and key in theirs and own[key].shape != theirs[key].shape:
            fitted[key] = grow(own[key], theirs[key])
    # frozen norms have no counter, and no weight depends on it
    counters = {key: value for key, value in own.items() if key.endswith(_COUNTER)}
    return counters | {
        key: value for key, value in fitted.items() if key in own or not key.endswith(_COUNTER)
    }


def _check_same(
    folder: Path,
    own: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    config: AnyModelConfig,
    other_file: ModelFile,
) -> None:
    missing = tuple(key for key in own if key not in theirs)
    unexpected = tuple(key for key in theirs if key not in own)
    mismatched = tuple(key for key in own if key in theirs and own[key].shape != theirs[key].shape)
    if missing or unexpected or mismatched:
        differing = model_differences(other_file.experiment.model, config)
        raise WeightsError(
            folder,
            "holds another architecture than the experiment; leave out what differs from its own, or take "
            f"other weights: {', '.join(differing)}",
            missing=missing,
            unexpected=unexpected,
            mismatched=mismatched,
        )


def model_differences(theirs: AnyModelConfig, own: AnyModelConfig) -> list[str]:
    """Return the settings of two models that differ, as `--set` names them: their value and the own one."""
    before, after = (flatten(settings_to_dict(config), "model") for config in (theirs, own))
    return [
        f"{path} is {before.get(path)!r} there and {after.get(path)!r} here"
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    ]


def _more_queries(own: Tensor, theirs: Tensor) -> Tensor:
    """Return the other model's queries, repeated halfway between their values and random ones.

    Equal queries would stay equal.
    """
    if theirs.shape[1:] != own.shape[1:] or len(own) <= len(theirs):
        return theirs
    again = theirs[torch.arange(len(theirs), len(own)) % len(theirs)]
    return torch.cat((theirs, torch.lerp(again, own[len(theirs) :], 0.5)))


def _more_octaves(own: Tensor, theirs: Tensor) -> Tensor:
    """Return the other model's projection of positions, with zeros for the finer octaves.

    The columns are sines, then cosines, of each x, then y, in rising frequency: see `fourier_positions`.
    """
    if theirs.shape[0] != own.shape[0] or own.shape[1] <= theirs.shape[1]:
        return theirs
    waves, known = (weight.unflatten(1, (4, -1)) for weight in (torch.zeros_like(own), theirs))
    waves[:, :, : known.shape[2]] = known
    return waves.flatten(1, 2)


_GROWING = {
    "query_decoder.query_features.weight": _more_queries,
    "query_decoder.query_positions.weight": _more_queries,
    "pixel_decoder.mask_positions.projection.weight": _more_octaves,
}
"""What may be larger than in the initial weights."""

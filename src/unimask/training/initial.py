"""The initial weights of a training."""

from pathlib import Path

from torch import Tensor

from unimask.checkpoints.images import load_model, resolve_weights
from unimask.config.images import BackboneConfig, VisionTransformerConfig
from unimask.conversion.imagenet import ImageNetSource, load_imagenet
from unimask.errors import WeightsError
from unimask.models.build import Model
from unimask.models.detr import Detr
from unimask.models.detr_masks import DetrWithMasks
from unimask.structures import Categories

_DETECTOR = "detr."  # where a `DetrWithMasks` has its detector
_CLASS_HEAD = tuple(
    f"{decoder}heads.classes.{name}" for decoder in ("query_decoder.", "") for name in ("weight", "bias")
)


def load_initial(
    model: Model,
    backbone: BackboneConfig | VisionTransformerConfig,
    categories: Categories,
    initial: str | Path | None,
) -> str:
    """Fill the model in place with its initial weights; return a sentence for the provenance.

    `initial` is None (the weights stay random), `imagenet` (the backbone's weights from ImageNet; of an EoMT,
    DINOv2's or DINOv3's by timm's name in `model.backbone.name`) or `imagenet:FILE` (from a file), or a model
    folder or a model of the package, whose categories may differ.
    Of another model, the rows of the class head are taken by the name of the category; a category that it
    does not know keeps its random row, and "no object" is always taken. A DETR without a mask head may start
    one with it, which then keeps its random mask head (DETR, Sec. 4.2: boxes first).

    Raises:
        WeightsError: the weights are not there, or belong to another architecture.
    """
    if initial is None:
        return "random"
    word, _, file = str(initial).partition(":")
    if word == "imagenet":
        source: ImageNetSource = Path(file) if file else "automatic"
        return f"backbone from {load_imagenet(backbone.name, model.backbone, source)}"
    folder = resolve_weights(initial)
    other, other_file = load_model(folder)
    own = model.state_dict()
    theirs = other.state_dict()
    if isinstance(model, DetrWithMasks) and isinstance(other, Detr):
        # the mask head is added to a detector, and starts at random
        detector = {f"{_DETECTOR}{key}": value for key, value in theirs.items()}
        theirs = {key: value for key, value in own.items() if not key.startswith(_DETECTOR)} | detector
    for key in [key for key in theirs if key.removeprefix(_DETECTOR) in _CLASS_HEAD]:
        theirs[key] = _by_category(own[key], theirs[key], categories, other_file.categories)
    missing = tuple(key for key in own if key not in theirs)
    unexpected = tuple(key for key in theirs if key not in own)
    mismatched = tuple(key for key in own if key in theirs and own[key].shape != theirs[key].shape)
    if missing or unexpected or mismatched:
        raise WeightsError(
            folder,
            "holds another architecture than the experiment; take its preset, or other weights",
            missing=missing,
            unexpected=unexpected,
            mismatched=mismatched,
        )
    model.load_state_dict(theirs)
    shared = set(categories.names) & set(other_file.categories.names)
    return f"the model {folder.name} ({len(shared)} of {len(categories)} categories known to it)"


def _by_category(own: Tensor, theirs: Tensor, categories: Categories, their_categories: Categories) -> Tensor:
    if theirs.shape[1:] != own.shape[1:]:
        return theirs  # of another width: it will be named as a tensor that does not fit
    rows = own.clone()
    rows[-1] = theirs[-1]  # no object
    places = {name: row for row, name in enumerate(their_categories.names)}
    for row, name in enumerate(categories.names):
        if name in places:
            rows[row] = theirs[places[name]]
    return rows

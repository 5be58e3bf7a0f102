"""What a model said about a picture, kept so that it can be read again: for another task or threshold."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from unimask.config.images import ALL_TASKS, TASKS, PostprocessConfig, Task, Tiles, tasks_of
from unimask.inference.segmenter import (
    Prediction,
    Segmenter,
    categories_united,
    read_segments,
    tiles_of,
)
from unimask.inference.stitching import stitch
from unimask.inference.tiles import Tile
from unimask.ops.boxes import boxes_around
from unimask.postprocess.boxes import read_boxes
from unimask.results.boxes import BoxResult
from unimask.results.segments import Result
from unimask.structures import BoxMaskPrediction, BoxPrediction, Detections, MaskPrediction, Placement


@dataclass(frozen=True, kw_only=True)
class CachedView:
    """A part of a picture, and the model's final prediction about it: a batch of one."""

    tile: Tile
    placement: Placement
    prediction: Prediction


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedPrediction:
    """A picture and all that is needed to read results about it without the model."""

    name: str
    image: UInt8[Tensor, "3 height width"]
    views: tuple[CachedView, ...]

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        tensors = [self.image]
        for view in self.views:
            tensors += [value for value in vars(view.prediction).values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """`score`: the lowest of a query, instance or box. `overlap`: the least visible share (panoptic)."""

    score: float
    overlap: float


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Whether a task can be read from a model's predictions, and with which thresholds if nobody says.

    `reason` says why not, in a sentence, and is empty where it can.
    """

    task: Task
    reason: str
    thresholds: Thresholds
    adjustable: tuple[str, ...]  # the thresholds that play a part


def offers_of(segmenter: Segmenter) -> dict[Task, Offer]:
    """What can be read from the predictions of a model.

    A model of masks that tells instances apart also gives boxes: those around its instances.
    """
    config = segmenter.model_file.experiment.postprocess
    return {
        task: Offer(
            task=task,
            reason=_why_not(segmenter, task),
            thresholds=Thresholds(
                score=config.object_threshold if task == "panoptic" else config.instance_threshold,
                overlap=config.overlap_threshold,
            ),
            adjustable=_adjustable(segmenter, task),
        )
        for task in ALL_TASKS
    }


def _why_not(segmenter: Segmenter, task: Task) -> str:
    model = segmenter.model_file.experiment.model
    known = tasks_of(model)
    if task == "detection":
        if "detection" in known:
            tiled = isinstance(segmenter.model_file.experiment.data.view, Tiles)
            return "This model sees tiles, and boxes of tiles are not joined." if tiled else ""
        things = "instance" in known and any(segmenter.categories.is_thing)
        return "" if things else "This model tells no objects apart, so there is nothing to put boxes around."
    if task in known:
        return ""
    if model.kind == "masks":
        return "This model gives every pixel a category and tells no objects apart."
    return "This model finds boxes, not masks."


def _adjustable(segmenter: Segmenter, task: Task) -> tuple[str, ...]:
    if task == "semantic":
        return ()
    masks = segmenter.model_file.experiment.model.kind == "masks"
    return ("score", "overlap") if task == "panoptic" and masks else ("score",)


def look(
    segmenter: Segmenter,
    images: Sequence[UInt8[Tensor, "3 _height _width"]],
    names: Sequence[str],
    batch_size: int,
    after_each: Callable[[], None],
) -> list[CachedPrediction]:
    """What the model says about pictures; views of one size go through it together.

    `after_each` is called after each view, and may raise to end the work.
    """
    config = segmenter.model_file.experiment.data
    places = [(index, tile) for index, image in enumerate(images) for tile in tiles_of(image, config)]
    windows = [images[index][:, *tile.window] for index, tile in places]

    def keep(prediction: Prediction, position: int, placement: Placement) -> tuple[Prediction, Placement]:
        after_each()
        return _alone(prediction, position), placement

    views: list[list[CachedView]] = [[] for _ in images]
    for (index, tile), (prediction, placement) in zip(
        places, segmenter.read_each(windows, keep, batch_size), strict=True
    ):
        views[index].append(CachedView(tile=tile, placement=placement, prediction=prediction))
    return [
        CachedPrediction(name=name, image=image, views=tuple(row))
        for name, image, row in zip(names, images, views, strict=True)
    ]


def _alone(prediction: Prediction, position: int) -> Prediction:
    """One picture of a batch, final layer only, in memory of its own."""
    one = slice(position, position + 1)
    class_logits = prediction.class_logits[-1:, one].clone()
    if isinstance(prediction, MaskPrediction):
        return MaskPrediction(
            class_logits=class_logits,
            mask_embeddings=prediction.mask_embeddings[-1:, one].clone(),
            mask_features=prediction.mask_features[-1:, one].clone(),
        )
    boxes = prediction.boxes[-1:, one].clone()
    if isinstance(prediction, BoxMaskPrediction):
        mask_logits = prediction.mask_logits[one].clone()
        return BoxMaskPrediction(class_logits=class_logits, boxes=boxes, mask_logits=mask_logits)
    return BoxPrediction(class_logits=class_logits, boxes=boxes)


def read_result(
    segmenter: Segmenter, seen: CachedPrediction, task: Task, thresholds: Thresholds
) -> Result | BoxResult:
    """The result of a task, equal to what `segmenter.predict` gives with these thresholds.

    Detection by a model of masks is the boxes around its instances.
    """
    config = dataclasses.replace(
        segmenter.model_file.experiment.postprocess,
        object_threshold=thresholds.score,
        overlap_threshold=thresholds.overlap,
        instance_threshold=thresholds.score,
    )
    if task in TASKS:
        return _segments(segmenter, seen, task, config)
    if segmenter.model_file.experiment.model.kind == "masks":
        found = boxes_around(_segments(segmenter, seen, "instance", config).prediction)
    else:
        found = _boxes(seen, thresholds.score)
    return BoxResult(name=seen.name, image=seen.image, prediction=found, categories=segmenter.categories)


def _segments(segmenter: Segmenter, seen: CachedPrediction, task: Task, config: PostprocessConfig) -> Result:
    categories = segmenter.categories
    parts = [
        (view.tile, read_segments(view.prediction, 0, view.placement, categories, config, task).cpu())
        for view in seen.views
    ]
    size = (seen.image.shape[1], seen.image.shape[2])
    found = stitch(parts, size, categories_united(categories, task), overlapping=task == "instance")
    return Result(task=task, name=seen.name, image=seen.image, prediction=found, categories=categories)


@torch.inference_mode()
def _boxes(seen: CachedPrediction, threshold: float) -> Detections:
    (view,) = seen.views
    assert not isinstance(view.prediction, MaskPrediction)
    found = read_boxes(view.prediction, 0, view.placement, threshold)
    return Detections(**{name: value.cpu() for name, value in vars(found).items()})

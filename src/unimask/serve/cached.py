"""Predictions for an image, kept to be postprocessed again for another task or threshold."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor

from unimask.config.data import SlidingWindow, Tiles
from unimask.config.models import tasks_of
from unimask.config.tasks import ALL_TASKS, Task
from unimask.errors import NotFiniteError
from unimask.inference.predictions import TilePrediction
from unimask.inference.segmenter import Segmenter
from unimask.ops.boxes import boxes_around
from unimask.results.result import Result
from unimask.structures import Segments


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedPrediction:
    """An image and the predictions for its tiles, from which results are made without the model."""

    name: str
    image: UInt8[Tensor, "3 height width"]
    tiles: tuple[TilePrediction, ...]
    notes: tuple[str, ...] = ()  # sentences about how the image was read

    @property
    def bytes(self) -> int:
        """The memory of its tensors."""
        tensors = [self.image, *(tensor for tile in self.tiles for tensor in tile.tensors.values())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """`score`: the lowest of a query, instance or box. `overlap`: the least visible share (panoptic)."""

    score: float
    overlap: float


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Whether a model's predictions can be postprocessed for a task, and with which thresholds by default.

    `reason` says why not, in a sentence, and is empty where it can.
    """

    task: Task
    reason: str
    thresholds: Thresholds
    adjustable: tuple[str, ...]  # the thresholds that have an effect


def offers_of(segmenter: Segmenter) -> dict[Task, Offer]:
    """Return what the predictions of a model can be postprocessed for.

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
    known, view = tasks_of(model), segmenter.model_file.experiment.data.view
    if isinstance(view, SlidingWindow) and task != "semantic":
        return "This model sees sliding windows, which are joined for semantic segmentation only."
    if task == "detection":
        if "detection" in known:
            tiled = isinstance(view, Tiles)
            return "This model sees tiles, and boxes of tiles are not joined." if tiled else ""
        things = "instance" in known and any(segmenter.categories.is_thing)
        return "" if things else "This model tells no objects apart, so there is nothing to put boxes around."
    if task in known:
        return ""
    if "detection" not in known:
        return "This model gives every pixel a category and tells no objects apart."
    return "This model finds boxes, not masks."


def _adjustable(segmenter: Segmenter, task: Task) -> tuple[str, ...]:
    if task == "semantic":
        return ()
    masks = "detection" not in tasks_of(segmenter.model_file.experiment.model)
    return ("score", "overlap") if task == "panoptic" and masks else ("score",)


def predict_cached(
    segmenter: Segmenter,
    images: Sequence[UInt8[Tensor, "3 _height _width"]],
    names: Sequence[str],
    batch_size: int,
    after_each: Callable[[], None],
) -> list[CachedPrediction]:
    """Return the model's predictions for images; tiles of one size go through it together.

    `after_each` is called after each tile, and may raise to end the work.
    """
    tiles: list[list[TilePrediction]] = [[] for _ in images]
    try:
        for one in segmenter.see(images, batch_size=batch_size):
            after_each()
            tiles[one.image].append(one.copy())
    except NotFiniteError as error:
        raise error.of(names[error.image] or "image") from None
    return [
        CachedPrediction(name=name, image=image, tiles=tuple(row))
        for name, image, row in zip(names, images, tiles, strict=True)
    ]


def result_of(segmenter: Segmenter, cached: CachedPrediction, task: Task, thresholds: Thresholds) -> Result:
    """Return the result of a task, equal to what `segmenter.predict` returns with these thresholds.

    Detection by a model of masks is the boxes around its instances.
    """
    config = dataclasses.replace(
        segmenter.model_file.experiment.postprocess,
        object_threshold=thresholds.score,
        overlap_threshold=thresholds.overlap,
        instance_threshold=thresholds.score,
    )
    around = task == "detection" and task not in tasks_of(segmenter.model_file.experiment.model)
    found = segmenter.postprocess(cached.tiles, "instance" if around else task, config)
    if around and isinstance(found, Segments):
        found = boxes_around(found)
    return segmenter.result(cached.name, cached.image, found, task)

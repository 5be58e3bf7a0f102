"""Postprocessing of any prediction for any task."""

from unimask.config.images import PostprocessConfig
from unimask.config.tasks import Task
from unimask.postprocess.boxes import postprocess_boxes, postprocess_panoptic
from unimask.postprocess.masks import postprocess_masks
from unimask.structures import (
    BoxMaskPrediction,
    Categories,
    Detections,
    MaskPrediction,
    Placement,
    Prediction,
    Segments,
)

NEARLY_ALL = 0.95  # share of the queries: if as many find an object in a view, there may be more objects


def nearly_full(found: Segments | Detections, task: Task, config: PostprocessConfig, queries: int) -> str:
    """Return a warning if a view has about as many objects as can be found in it, else an empty string.

    Objects are counted if their score reaches the threshold of `config` for the task.
    """
    threshold = config.object_threshold if task == "panoptic" else config.instance_threshold
    count = int((found.scores >= threshold).sum())
    if task == "instance" and count >= config.max_instances:
        return (
            f"a view has {config.max_instances} objects, and no more are kept (postprocess.max_instances): "
            "some may be missing; let the model see smaller tiles (--tile), or raise the number"
        )
    if task != "semantic" and count >= NEARLY_ALL * queries:
        return (
            f"{count} of the {queries} queries of the model have found something in one view: objects may be "
            "missing; let it see smaller tiles (--tile), or train one with more queries"
        )
    return ""


def postprocess(
    prediction: Prediction,
    image: int,
    placement: Placement,
    categories: Categories,
    config: PostprocessConfig,
    task: Task,
) -> Segments | Detections:
    """Return the segments or boxes of one image of the batch, at the size of its file.

    Raises:
        ValueError: the prediction has another number of classes than `categories`, no boxes for detection, or
            no masks for another task.
    """
    if isinstance(prediction, MaskPrediction):
        if task == "detection":
            raise ValueError("a prediction of masks has no boxes")
        return postprocess_masks(prediction, image, placement, categories, config, task)
    if task == "detection":
        return postprocess_boxes(prediction, image, placement, config.instance_threshold)
    if not isinstance(prediction, BoxMaskPrediction):
        raise ValueError("a prediction of boxes has no masks")
    if task == "panoptic":
        return postprocess_panoptic(prediction, image, placement, categories, config)
    return postprocess_masks(prediction.of_masks(), image, placement, categories, config, task)

"""Postprocessing of any prediction for any task."""

from unimask.config.images import PostprocessConfig, Task
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
        ValueError: the prediction has another number of classes than `categories`, or no masks for a task of
            segments, or no boxes for detection.
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

"""Postprocessing of any prediction for any task."""

from unimask.config.images import PostprocessConfig, Task
from unimask.postprocess.boxes import read_boxes, read_panoptic
from unimask.postprocess.masks import read
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
        return read(prediction, image, placement, categories, config, task)
    if task == "detection":
        return read_boxes(prediction, image, placement, config.instance_threshold)
    if not isinstance(prediction, BoxMaskPrediction):
        raise ValueError("a prediction of boxes has no masks")
    if task == "panoptic":
        return read_panoptic(prediction, image, placement, categories, config)
    return read(prediction.of_masks(), image, placement, categories, config, task)

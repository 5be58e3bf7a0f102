"""Data sets of segments as data sets of boxes, and boxes with the labels of a model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from unimask.data.views import as_instance, labels_of_model
from unimask.ops.boxes import scale_of, xyxy_to_cxcywh
from unimask.structures import (
    Batch,
    BoxDataset,
    BoxMaskTargets,
    BoxSample,
    Categories,
    Dataset,
    Detections,
    Segments,
    Size,
)


@runtime_checkable
class Listed(Dataset, Protocol):
    """A data set that knows the ids of its samples without reading them."""

    @property
    def image_ids(self) -> tuple[str, ...]:
        """In the order of the samples."""


class BoxesAround:
    """The smallest boxes around the things of a data set of segments; segments without a pixel are left out.

    Raises:
        DataError: the data set has no things.
    """

    def __init__(self, dataset: Listed) -> None:
        self._things = as_instance(dataset)
        self._image_ids = dataset.image_ids

    @property
    def categories(self) -> Categories:
        """The things of the data set."""
        return self._things.categories

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The id of every sample, without reading it."""
        return self._image_ids

    def __len__(self) -> int:
        return len(self._things)

    def __getitem__(self, index: int) -> BoxSample:
        sample = self._things[index]
        return BoxSample(
            image=sample.image, detections=boxes_around(sample.segments), image_id=sample.image_id
        )


class BoxView:
    """A data set whose boxes are changed on the way out."""

    def __init__(
        self, dataset: BoxDataset, categories: Categories, change: Callable[[Detections], Detections]
    ) -> None:
        self._dataset = dataset
        self._categories = categories
        self._change = change

    @property
    def categories(self) -> Categories:
        """The categories that the labels index after the change."""
        return self._categories

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> BoxSample:
        sample = self._dataset[index]
        return replace(sample, detections=self._change(sample.detections))


def match_box_categories(dataset: BoxDataset, categories: Categories) -> BoxDataset:
    """The data set with labels that index a model's categories, matched by name.

    Raises:
        DataError: the data set has a category that the model lacks.
    """
    table = labels_of_model(dataset.categories, categories)
    return BoxView(dataset, categories, lambda boxes: replace(boxes, labels=table[boxes.labels]))


def boxes_around(segments: Segments) -> Detections:
    """The smallest box around each segment that has a pixel, in their order; areas are those of the masks."""
    boxes = torch.zeros((len(segments), 4))
    found = torch.zeros(len(segments), dtype=torch.bool)
    for layer in segments.layers.numpy():
        for index, place in enumerate(ndimage.find_objects(layer, max_label=len(segments))):
            if place is not None:
                boxes[index] = _corners(place)
                found[index] = True
    return Detections(
        boxes=boxes,
        labels=segments.labels,
        scores=segments.scores,
        areas=segments.areas().float(),
        is_crowd=segments.is_crowd,
    ).select(found)


def box_mask_targets(batch: Batch) -> Batch:
    """The batch with boxes around its segments, for models that find both."""
    placements = batch.images.placements
    pairs = zip(cast(tuple[Segments, ...], batch.targets), placements, strict=True)
    targets = tuple(
        BoxMaskTargets(segments=segments, boxes=_relative(boxes_around(segments).boxes, placement.resized))
        for segments, placement in pairs
    )
    return replace(batch, targets=targets)


def _relative(boxes: Float[Tensor, "boxes 4"], size: Size) -> Float[Tensor, "boxes 4"]:
    return xyxy_to_cxcywh(boxes / scale_of(size, boxes))


def _corners(place: tuple[slice, slice]) -> Float[Tensor, " 4"]:
    rows, columns = place
    return torch.tensor([columns.start, rows.start, columns.stop, rows.stop], dtype=torch.float32)

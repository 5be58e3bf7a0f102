"""Data sets that users write in Python: samples from arrays, and their checks."""

import os
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from unimask.data.category_tables import default_color
from unimask.data.open import held_out
from unimask.data.read import AnyImage, read_image
from unimask.errors import DataError
from unimask.ops.boxes import box_areas
from unimask.ops.id_maps import pack_masks
from unimask.structures import Categories, Dataset, Detections, Sample, Segments


def make_categories(names: Sequence[str], stuff: Collection[str] = ()) -> Categories:
    """Return categories for a `Dataset`: label n is `names[n]`. Those in `stuff` have no single objects.

    Raises:
        DataError: there is no name, one occurs twice, or one in `stuff` is none of them.
    """
    if not names or len(set(names)) < len(names):
        raise DataError("categories", f"must have different names; got {list(names)}")
    if unknown := set(stuff) - set(names):
        raise DataError("categories", f"stuff {sorted(unknown)} is not among the names {list(names)}")
    return Categories(
        names=tuple(names),
        is_thing=tuple(name not in stuff for name in names),
        file_ids=tuple(range(1, len(names) + 1)),
        colors=tuple(default_color(index) for index in range(len(names))),
    )


def make_sample(
    image: AnyImage,
    labels: ArrayLike,
    *,
    masks: ArrayLike | Sequence[ArrayLike] | None = None,
    boxes: ArrayLike | None = None,
    name: str = "",
) -> Sample:
    """Return an image with its ground truth, as a `Dataset` gives it.

    Args:
        image: a path, PIL image, array or tensor, as `Segmenter.predict` takes it.
        labels: for each object, and each piece of stuff, its index into the names of the categories.
        masks: for each a mask of the image's height and width, True (or not 0) inside; they may overlap.
        boxes: instead of masks, for each a box (left, top, right, bottom) in pixels; for `detection` only.
        name: for messages; by default that of the file.

    Raises:
        DataError: the image cannot be read, or there are not as many masks or boxes as labels, or a mask has
            another size than the image.
    """
    name = name or (str(image) if isinstance(image, str | os.PathLike) else "image")
    pixels = read_image(image)
    numbers = torch.as_tensor(np.asarray(labels, dtype=np.int64).reshape(-1))
    if (masks is None) == (boxes is None):
        raise DataError(name, "needs masks or boxes, one of the two")
    if boxes is not None:
        return Sample(image=pixels, truth=_boxes(name, numbers, boxes), image_id=name)
    height, width = pixels.shape[1:]
    given = np.asarray(masks)
    dense = given != 0 if given.size else np.zeros((0, height, width), dtype=bool)
    if dense.shape != (len(numbers), height, width):
        wanted = (len(numbers), height, width)
        raise DataError(name, f"has masks of shape {dense.shape}; expected {wanted}: labels, height, width")
    truth = Segments(
        layers=pack_masks(torch.from_numpy(dense)),
        labels=numbers,
        scores=torch.ones(len(numbers)),
        is_crowd=torch.zeros(len(numbers), dtype=torch.bool),
    )
    return Sample(image=pixels, truth=truth, image_id=name)


def _boxes(name: str, labels: Tensor, boxes: ArrayLike) -> Detections:
    corners = torch.as_tensor(np.asarray(boxes, dtype=np.float32).reshape(-1, 4))
    if len(corners) != len(labels):
        raise DataError(name, f"has {len(corners)} boxes and {len(labels)} labels")
    if not bool(torch.isfinite(corners).all() and (corners[:, 2:] > corners[:, :2]).all()):
        raise DataError(name, "has boxes without an area; expected left < right and top < bottom")
    return Detections(
        boxes=corners,
        labels=labels,
        scores=torch.ones(len(labels)),
        areas=box_areas(corners),
        is_crowd=torch.zeros(len(labels), dtype=torch.bool),
    )


class CheckedDataset:
    """Some or all samples of a data set, checked when they are read."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self._dataset, self._indices = dataset, indices

    @property
    def categories(self) -> Categories:
        """The categories of the data set."""
        return self._dataset.categories

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample.

        Raises:
            DataError: it is none, or its truth does not fit its image or the categories.
        """
        number = self._indices[index]
        sample = self._dataset[number]
        place = f"{name_of(self._dataset)}[{number}]"
        if not isinstance(sample, Sample):
            raise DataError(place, f"is of type {type(sample).__name__}; return unimask.make_sample(...)")
        image, truth = sample.image, sample.truth
        is_image = isinstance(image, Tensor) and image.dtype == torch.uint8
        if not (is_image and image.ndim == 3 and len(image) == 3):
            raise DataError(place, "has an image that is no uint8 tensor (3, height, width)")
        if isinstance(truth, Segments) and truth.size != tuple(image.shape[1:]):
            raise DataError(place, f"has an image of {tuple(image.shape[1:])} and masks of {truth.size}")
        count = len(self.categories)
        if len(truth) and not 0 <= int(truth.labels.min()) <= int(truth.labels.max()) < count:
            raise DataError(place, f"has labels that are not from 0 to {count - 1}, the {count} categories")
        return replace(sample, image_id=sample.image_id or place)


def name_of(dataset: Dataset) -> str:
    """Return the name of a data set of Python in messages and in the run folder."""
    return type(dataset).__name__


def checked(dataset: Dataset) -> CheckedDataset:
    """Return all samples of a data set, checked.

    Raises:
        DataError: its categories are none.
    """
    if not isinstance(getattr(dataset, "categories", None), Categories):
        raise DataError(
            name_of(dataset), "has no `categories`; make them with unimask.make_categories(names)"
        )
    return CheckedDataset(dataset, range(len(dataset)))


def split_own(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Return training and validation samples of one data set: about one in ten, by a hash of its number.

    Raises:
        DataError: there are fewer than two samples.
    """
    if len(dataset) < 2:
        reason = f"has too few samples ({len(dataset)}) to hold some out; give others as `validation`"
        raise DataError(name_of(dataset), reason)
    is_val = held_out([str(index) for index in range(len(dataset))])
    parts = ([index for index, val in enumerate(is_val) if val == wanted] for wanted in (False, True))
    training, validation = (CheckedDataset(dataset, part) for part in parts)
    return training, validation

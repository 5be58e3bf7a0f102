"""The images of an evaluation to be shown: the same few each time, and the worst ones.

Images are kept small, so memory does not grow with the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from unimask.results.sheets import comparison_sheet
from unimask.structures import Categories, Detections, Sample, Segments, Truth

MOST = 8  # of the same images, and of the worst ones
SIDE = 480  # pixels of the longer side of what is kept
MOST_ENLARGED = 4  # times


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image with its ground truth and what was found in it."""

    index: int  # in the data set
    sample: Sample
    found: Segments | Detections
    quality: float  # 0 to 1


class Gallery:
    """The images with some indices, and the worst ones of all: states can be merged."""

    def __init__(self, indices: Sequence[int]) -> None:
        self._indices = frozenset(indices)
        self._same: dict[int, Example] = {}
        self._worst: list[Example] = []

    def add(self, index: int, sample: Sample, found: Truth, quality: float) -> None:
        """Keep an image if it has one of the indices or is among the worst so far."""
        bad = len(self._worst) < MOST or (quality, index) < _order(self._worst[-1])
        if index not in self._indices and not bad:
            return
        example = Example(
            index=index, sample=shrink(sample), found=shrink_truth(found, sample), quality=quality
        )
        if index in self._indices:
            self._same[index] = example
        if bad:
            self._worst = sorted([*self._worst, example], key=_order)[:MOST]

    def merge(self, other: "Gallery") -> None:
        """Add the images that another state has kept."""
        self._same |= other._same
        self._worst = sorted([*self._worst, *other._worst], key=_order)[:MOST]

    def same(self) -> list[Example]:
        """Return the images with the given indices, in their order."""
        return [self._same[index] for index in sorted(self._same)]

    def worst(self) -> list[Example]:
        """Return the worst images, the worst one first; of equal ones the first in the data."""
        return list(self._worst)


def gallery_sheet(examples: Sequence[Example], categories: Categories, quality: str) -> Image.Image:
    """Return a sheet of examples, truth beside prediction, with the share that each has of `quality`."""
    notes = [prediction_note(example.quality, quality) for example in examples]
    samples, found = [example.sample for example in examples], [example.found for example in examples]
    return comparison_sheet(samples, found, categories, notes=notes)


def prediction_note(share: float, quality: str) -> str:
    """Return the caption of a prediction: the share that it has of `quality`."""
    return f"prediction: {share:.0%} {quality}"


def _order(example: Example) -> tuple[float, int]:
    return example.quality, example.index


def spread(count: int, most: int = MOST) -> list[int]:
    """Return up to `most` indices of `count` images, evenly spread."""
    shown = min(most, count)
    return sorted({round(place * (count - 1) / max(1, shown - 1)) for place in range(shown)})


def shrink(sample: Sample, side: int = SIDE) -> Sample:
    """Return an image with its ground truth, its longer side at most `side`.

    Where it is less than half as long, the image is enlarged by a whole number, so that names can be written.
    """
    size = _small_size(sample.image, side)
    return replace(sample, image=_resize(sample.image, size), truth=shrink_truth(sample.truth, sample, side))


def shrink_truth(truth: Truth, sample: Sample, side: int = SIDE) -> Truth:
    """Return segments or boxes of an image as they lie in the one of `shrink`.

    Each pixel takes the segment of the nearest pixel, so small segments may vanish.
    """
    height, width = sample.image.shape[1:]
    rows, columns = _small_size(sample.image, side)
    if (rows, columns) == (height, width):
        return truth
    if isinstance(truth, Segments):
        y = (torch.arange(rows) * 2 + 1) * height // (2 * rows)
        x = (torch.arange(columns) * 2 + 1) * width // (2 * columns)
        return replace(truth, layers=truth.layers[:, y][:, :, x])
    scale = torch.tensor([columns / width, rows / height] * 2)
    return replace(truth, boxes=truth.boxes * scale, areas=truth.areas * scale[0] * scale[1])


def _small_size(image: Tensor, side: int) -> tuple[int, int]:
    height, width = int(image.shape[1]), int(image.shape[2])
    scale = side / max(height, width)
    scale = scale if scale < 1 else min(MOST_ENLARGED, int(scale))
    return max(1, round(scale * height)), max(1, round(scale * width))


def _resize(
    image: UInt8[Tensor, "3 _height _width"], size: tuple[int, int]
) -> UInt8[Tensor, "3 _rows _columns"]:
    if size == tuple(image.shape[1:]):
        return image
    pixels: UInt8[ndarray, "_height _width 3"] = np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())
    method = Image.Resampling.BOX if size[0] < image.shape[1] else Image.Resampling.NEAREST
    small = Image.fromarray(pixels).resize(size[::-1], method)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)

"""Overlaps of predicted and ground-truth segments, from joint histograms of their id maps.

No dense (N, H, W) masks are made; disjoint segments need one pass over the image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from unimask.structures import Categories, Segments

NOT_MEASURED = -1.0
"""The value of a measure without ground truth (no segment of the kind), as in COCO's code."""

_DENSE_CELLS = 1 << 22  # a histogram with more cells than this is computed by sorting

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """The pairs of ids that share pixels: `pixels[p]` pixels lie in `truth[p]` and in `result[p]`."""

    truth: Integers  # ids; 0 is no segment
    result: Integers
    pixels: Integers


def check_pair(result: Segments, truth: Segments, categories: Categories) -> None:
    """Check that result and truth can be compared.

    Raises:
        ValueError: their sizes differ, a label is not an index into the categories, or an id has no segment.
    """
    if result.size != truth.size:
        raise ValueError(
            f"the result is {result.size[0]} x {result.size[1]} pixels (height x width), "
            f"its truth {truth.size[0]} x {truth.size[1]}; results are compared at the size of the file"
        )
    for name, segments in (("result", result), ("truth", truth)):
        labels = segments.labels
        if len(segments) and not 0 <= int(labels.min()) <= int(labels.max()) < len(categories):
            worst = int(labels.max() if int(labels.min()) >= 0 else labels.min())
            raise ValueError(f"the {name} has label {worst}; there are {len(categories)} categories, from 0")
        layers = segments.layers
        if layers.numel() and not 0 <= int(layers.min()) <= int(layers.max()) <= len(segments):
            highest, lowest = int(layers.max()), int(layers.min())
            raise ValueError(
                f"the {name} has ids from {lowest} to {highest} in its map, but {len(segments)} segments"
            )


def check_same_categories(mine: Categories, other: Categories) -> None:
    """Check that two accumulators have the same categories.

    Raises:
        ValueError: names or kinds (thing, stuff) differ.
    """
    if (mine.names, mine.is_thing) != (other.names, other.is_thing):
        raise ValueError("metrics over different categories cannot be merged")


def as_numbers(values: torch.Tensor) -> Integers:
    """Return integers of any type, on any device, as int64 on the CPU."""
    numbers: Integers = values.detach().cpu().numpy().astype(np.int64)
    return numbers


def flat_map(segments: Segments) -> Integers:
    """Return the id of each pixel (0: none), row by row, for segments that do not overlap.

    Raises:
        ValueError: two segments share a pixel.
    """
    layers = as_numbers(segments.layers).reshape(segments.layers.shape[0], -1)
    if len(layers) == 1:
        return layers[0]
    if ((layers > 0).sum(axis=0) > 1).any():
        raise ValueError(
            "segments overlap; panoptic and semantic measures need at most one segment per pixel"
        )
    return layers.sum(axis=0)


def joint_histogram(truth: Integers, result: Integers) -> Overlaps:
    """Return how many pixels have each pair of ids in two flattened maps of the same size, 0 included."""
    columns = int(result.max(initial=0)) + 1
    cells = (int(truth.max(initial=0)) + 1) * columns
    joint = truth * columns + result
    if cells <= max(_DENSE_CELLS, 4 * joint.size):
        counts = np.bincount(joint, minlength=1)
        pairs = np.flatnonzero(counts)
        pixels = counts[pairs].astype(np.int64)
    else:
        pairs, counts = np.unique(joint, return_counts=True)
        pixels = counts.astype(np.int64)
    return Overlaps(truth=pairs // columns, result=pairs % columns, pixels=pixels)


def segment_overlaps(result: Segments, truth: Segments) -> Overlaps:
    """Return how many pixels each true segment shares with each predicted one; only pairs that share some.

    Segments may overlap each other. Pairs of layers are compared only where the layer of the result has a
    segment.
    """
    truth_layers = as_numbers(truth.layers).reshape(truth.layers.shape[0], -1)
    parts = []
    for layer in as_numbers(result.layers).reshape(result.layers.shape[0], -1):
        covered = np.flatnonzero(layer)
        ids = layer[covered]
        parts += [joint_histogram(truth_layer[covered], ids) for truth_layer in truth_layers]
    names = ("truth", "result", "pixels")
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    real = (columns["truth"] > 0) & (columns["result"] > 0)
    return Overlaps(
        truth=columns["truth"][real], result=columns["result"][real], pixels=columns["pixels"][real]
    )

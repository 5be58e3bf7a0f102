"""Rasterise the shapes of annotation files into an id map, one by one, without a stack of masks."""

from collections.abc import Sequence

import numpy as np
import torch
from hotcoco import mask as coco_mask
from jaxtyping import Int16, Int64
from numpy import ndarray
from torch import Tensor

from unimask.ops.id_maps import MOST_SEGMENTS
from unimask.structures import Segments, Size

Polygons = tuple[ndarray, ...]
RunLengths = str | bytes | ndarray
Shape = Polygons | RunLengths
"""Polygons (each x1, y1, x2, y2, ... in pixels) or the run lengths of a COCO mask, packed or plain."""


class LayerPainter:
    """Collects segments as sets of pixels; each goes to the first layer where it overlaps nothing."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.layers = [np.zeros(size[0] * size[1], dtype=np.int16)]
        self.count = 0

    def add(self, pixels: ndarray) -> None:
        """Add a segment; `pixels` are indices into the image flattened row by row, and may be none.

        Raises:
            ValueError: an id map cannot hold so many segments.
        """
        self.count += 1
        if self.count > MOST_SEGMENTS:
            raise ValueError(f"more than {MOST_SEGMENTS} segments in one image")
        for layer in self.layers:
            if not layer[pixels].any():
                break
        else:
            layer = np.zeros_like(self.layers[0])
            self.layers.append(layer)
        layer[pixels] = self.count

    def result(self) -> Int16[Tensor, "layers height width"]:
        """Return the id map."""
        return torch.from_numpy(np.stack(self.layers).reshape(-1, *self.size))


def truth_segments(
    layers: Int16[Tensor, "layers height width"],
    labels: Sequence[int],
    is_crowd: Sequence[bool],
    stated_areas: Sequence[float] = (),
) -> Segments:
    """Segments of a ground truth: every score is 1. `stated_areas` are of all segments, or of none."""
    return Segments(
        layers=layers,
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.ones(len(labels)),
        is_crowd=torch.tensor(is_crowd, dtype=torch.bool),
        stated_areas=torch.tensor(stated_areas, dtype=torch.float64),
    )


def shape_pixels(shape: Shape, size: Size) -> ndarray:
    """Return the pixels that a shape covers, as indices into the image flattened row by row.

    Polygons are drawn as pycocotools draws them and clipped at the border; several are united.

    Raises:
        ValueError: run lengths that cannot be decoded or do not fit the size.
    """
    height, width = size
    if isinstance(shape, tuple):
        rings = [coco_mask.fr_poly(ring.tolist(), height, width) for ring in shape]
        merged = coco_mask.merge(rings, intersect=False) if len(rings) > 1 else rings[0]
        runs = unpack_run_lengths(merged["counts"])
    else:
        runs = shape if isinstance(shape, ndarray) else unpack_run_lengths(shape)
    return _covered(runs, height, width)


def unpack_run_lengths(packed: str | bytes) -> Int64[ndarray, " runs"]:
    """Decode COCO's compressed string into run lengths, beginning with a run of zeros.

    Each number is a signed integer in groups of five bits, lowest first, and from the fourth number on the
    difference to the one two places before.

    Raises:
        ValueError: the string is cut off or has a foreign character.
    """
    data = packed.encode("utf-8") if isinstance(packed, str) else packed
    groups = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if groups.size == 0:
        return groups
    if groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise ValueError("the compressed run lengths are damaged")
    last = (groups & 32) == 0
    starts = np.concatenate(([0], np.flatnonzero(last)[:-1] + 1))
    lengths = np.diff(np.append(starts, groups.size))
    if lengths.max() > 8:
        raise ValueError("the compressed run lengths are damaged")
    position = np.arange(groups.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((groups & 31) << (5 * position), starts)
    negative = (groups[last] & 16) != 0
    numbers -= negative * (np.int64(1) << (5 * lengths))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _covered(runs: ndarray, height: int, width: int) -> ndarray:
    if runs.size and runs.min() < 0:
        raise ValueError("the run lengths are damaged: one is negative")
    ends = np.cumsum(runs)
    if runs.size and ends[-1] > height * width:
        raise ValueError(f"the run lengths cover {ends[-1]} pixels, the image has {height * width}")
    lengths, ends = runs[1::2], ends[1::2]
    down_columns = np.arange(lengths.sum()) + np.repeat(ends - np.cumsum(lengths), lengths)
    columns, rows = np.divmod(down_columns, height)
    return rows * width + columns

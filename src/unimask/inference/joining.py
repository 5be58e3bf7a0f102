"""One result for an image from the predictions for its parts."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from unimask.config.tasks import Task
from unimask.inference.predictions import TilePrediction
from unimask.inference.stitching import stitch
from unimask.inference.tiles import Tile
from unimask.postprocess.semantic import PlacedPrediction, semantic_of_windows
from unimask.structures import Categories, Detections, MaskPrediction, Segments


@runtime_checkable  # the tests check argument types at run time
class Joiner(Protocol):
    """Takes the predictions of all parts of an image."""

    def add(self, one: TilePrediction) -> None:
        """Take the next part."""

    def result(self) -> Segments | Detections:
        """Return the result of all parts, on the CPU."""


class StitchedTiles:
    """Each tile is postprocessed at once; the segments of several are joined (`stitching.py:Stitcher`)."""

    def __init__(
        self,
        postprocess: Callable[[TilePrediction], Segments | Detections],
        unites: Bool[Tensor, " classes"],
        *,
        overlapping: bool,
    ) -> None:
        self._postprocess = postprocess
        self._unites, self._overlapping = unites, overlapping
        self._parts: list[tuple[Tile, Segments | Detections]] = []

    def add(self, one: TilePrediction) -> None:
        """Postprocess the next tile."""
        self._parts.append((one.tile, self._postprocess(one)))

    def result(self) -> Segments | Detections:
        """Return the segments of all tiles, or the segments or boxes of the only one."""
        if len(self._parts) == 1:
            return self._parts[0][1]
        segments = [(tile, found) for tile, found in self._parts if isinstance(found, Segments)]
        rows, columns = self._parts[-1][0].window
        return stitch(segments, (rows.stop, columns.stop), self._unites, overlapping=self._overlapping)


class AveragedWindows:
    """The values of the categories are averaged where sliding windows overlap: semantic segments."""

    def __init__(self) -> None:
        self._parts: list[TilePrediction] = []

    def add(self, one: TilePrediction) -> None:
        """Keep the next window."""
        self._parts.append(one)

    def result(self) -> Segments:
        """Return the category with the largest mean at each pixel."""
        placed = []
        for one in self._parts:
            assert isinstance(one.prediction, MaskPrediction)  # models of boxes have no semantic task
            placed.append(
                PlacedPrediction(
                    prediction=one.prediction, window=one.tile.window, canvas=one.placement.canvas
                )
            )
        return semantic_of_windows(placed, self._parts[0].frame).cpu()


def categories_united(categories: Categories, task: Task) -> Bool[Tensor, " classes"]:
    """Return for each category whether an image holds at most one segment of it in a result of the task."""
    if task == "panoptic":
        return ~torch.tensor(categories.is_thing)
    return torch.full((len(categories),), task == "semantic")

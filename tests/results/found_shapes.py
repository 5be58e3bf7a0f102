"""Results to test with."""

import torch
from torch import Tensor

from unimask.ops.id_maps import pack_masks
from unimask.results.result import Result
from unimask.structures import Categories, Detections, Segments

SIZE = (43, 59)
CATEGORIES = Categories(
    names=("cat", "dog"), is_thing=(True, True), file_ids=(3, 7), colors=((1, 2, 3), (4, 5, 6))
)


def segments(empty: bool = False, masks: Tensor | None = None) -> Result:
    """A ring with a hole and a part of its own, a square over it, and a segment without pixels."""
    if masks is None:
        masks = torch.zeros((3, *SIZE), dtype=torch.bool)
        if not empty:
            masks[0, 5:31, 7:37] = True
            masks[0, 12:19, 15:22] = False
            masks[0, 33:37, 41:47] = True
            masks[2, 25:41, 30:50] = True
    prediction = Segments(
        layers=pack_masks(masks),
        labels=torch.tensor([1, 0, 0]),
        scores=torch.tensor([0.9, 0.8, 0.7]),
        is_crowd=torch.zeros(3, dtype=torch.bool),
    )
    image = torch.full((3, *SIZE), 128, dtype=torch.uint8)
    return Result(task="instance", name="one", image=image, prediction=prediction, categories=CATEGORIES)


def boxes(count: int = 2) -> Result:
    """Boxes with fractions, one of which reaches over the border."""
    prediction = Detections(
        boxes=torch.tensor([[3.5, 4.25, 20.5, 31.0], [-2.0, 0.0, 10.0, 12.5]])[:count],
        labels=torch.tensor([1, 0])[:count],
        scores=torch.tensor([0.75, 0.5])[:count],
        areas=torch.tensor([454.75, 150.0])[:count],
        is_crowd=torch.zeros(count, dtype=torch.bool),
    )
    image = torch.full((3, *SIZE), 128, dtype=torch.uint8)
    return Result(task="detection", name="one", image=image, prediction=prediction, categories=CATEGORIES)

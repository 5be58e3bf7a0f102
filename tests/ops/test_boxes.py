import pytest
import torch
from torchvision.ops import box_iou as their_iou
from torchvision.ops import generalized_box_iou as their_generalized_iou

from unimask.ops.boxes import (
    box_areas,
    box_iou,
    clip_boxes,
    cxcywh_to_xyxy,
    generalized_box_iou,
    scale_of,
    xyxy_to_cxcywh,
)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, generator=generator) * torch.tensor([1.0, 1.0, 0.5, 0.5]) + 0.01


def test_both_ways_to_write_a_box() -> None:
    assert cxcywh_to_xyxy(torch.tensor([5.0, 7.0, 4.0, 2.0])).tolist() == [3.0, 6.0, 7.0, 8.0]
    boxes = random_boxes(11, 0)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)
    assert box_areas(torch.tensor([3.0, 6.0, 7.0, 8.0])) == 8


def test_overlaps_of_all_pairs_equal_those_of_torchvision() -> None:
    first, second = cxcywh_to_xyxy(random_boxes(7, 1)), cxcywh_to_xyxy(random_boxes(5, 2))
    iou, union = box_iou(first[:, None], second[None])
    torch.testing.assert_close(iou, their_iou(first, second))
    assert union.shape == (7, 5)
    generalized = generalized_box_iou(first[:, None], second[None])
    torch.testing.assert_close(generalized, their_generalized_iou(first, second))
    torch.testing.assert_close(generalized_box_iou(first[:5], second), generalized[:5].diagonal())


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([0.0, 0.0, 1.0, 1.0], 1.0),
        ([1.0, 0.0, 2.0, 1.0], 0.0),  # side by side: the box around both is covered
        ([3.0, 0.0, 4.0, 1.0], -0.5),  # of the box around both, half is covered
    ],
)
def test_generalized_iou_of_boxes_apart(other: list[float], expected: float) -> None:
    found = generalized_box_iou(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor(other))
    assert found.item() == pytest.approx(expected)


def test_empty_boxes_have_finite_overlaps_and_gradients() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.2, 0.9]], requires_grad=True)
    overlaps = generalized_box_iou(boxes[:, None], boxes[None])
    assert bool(overlaps.isfinite().all())
    overlaps.sum().backward()
    assert boxes.grad is not None
    assert bool(boxes.grad.isfinite().all())


def test_clipping_and_scale_know_height_from_width() -> None:
    assert scale_of((3, 7), torch.zeros(2, 4)).tolist() == [7, 3, 7, 3]
    assert clip_boxes(torch.tensor([-1.0, -2.0, 9.0, 8.0]), (3, 7)).tolist() == [0, 0, 7, 3]

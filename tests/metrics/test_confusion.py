"""What was taken for what: by hand, and beside the measures that count the same matches."""

import numpy as np
import pytest
import torch
from oracles.scenes import CATEGORIES, random_instances, random_pair, segments

from unimask.metrics.confusion import BoxConfusion, Confusion, SegmentConfusion
from unimask.metrics.matched_precision import MatchedPrecision
from unimask.metrics.mean_iou import MeanIoU
from unimask.metrics.panoptic_quality import PanopticQuality
from unimask.structures import Detections, Segments

CELL, SKY, FIBRE, GRASS, DROP, NOTHING = range(6)


def squares(*places: tuple[int, int, int], size: tuple[int, int] = (200, 200)) -> np.ndarray:
    """An id map of squares (top, left, side), numbered in their order."""
    ids = np.zeros(size, dtype=np.int64)
    for number, (top, left, side) in enumerate(places, start=1):
        ids[top : top + side, left : left + side] = number
    return ids


def scene() -> tuple[Segments, Segments]:
    """Result, truth: a small cell right, a medium fibre found as a drop, a large one missed, a false cell."""
    truth = segments(squares((0, 0, 10), (0, 20, 40), (100, 100, 100)), [CELL, FIBRE, DROP])
    result = segments(squares((0, 0, 9), (0, 20, 40), (100, 0, 96)), [CELL, DROP, CELL])
    return result, truth


def expected_matrix() -> list[list[int]]:
    matrix = np.zeros((6, 6), dtype=int)
    matrix[CELL, CELL] = matrix[FIBRE, DROP] = matrix[DROP, NOTHING] = matrix[NOTHING, CELL] = 1
    return matrix.tolist()


SIZES = {
    "small": {"right": 1, "confused": 0, "missed": 0, "false": 0},
    "medium": {"right": 0, "confused": 1, "missed": 0, "false": 0},
    "large": {"right": 0, "confused": 0, "missed": 1, "false": 1},
}


@pytest.mark.parametrize("flat", [True, False])
def test_a_scene_by_hand(flat: bool) -> None:
    result, truth = scene()
    if flat:  # nothing is void
        truth = segments(
            truth.layers[0].numpy() + 4 * (truth.layers[0].numpy() == 0), [CELL, FIBRE, DROP, SKY]
        )
    state = SegmentConfusion(CATEGORIES, flat=flat)
    quality = state.count(result, truth)
    table = state.table()
    expected = np.array(expected_matrix())
    expected[SKY, NOTHING] += flat
    assert (table.unit, table.names) == ("segments", CATEGORIES.names)
    assert np.array_equal(table.matrix, expected)
    sizes = {size: dict(counts) for size, counts in SIZES.items()}
    sizes["large"]["missed"] += flat
    assert table.by_size == sizes
    assert quality == pytest.approx(1 / (5 + flat))  # right; wrong: drop and cell; missed: fibre and drop
    assert {("fibre", "drop", 1), ("drop", "", 1), ("", "cell", 1)} <= set(table.most_confused(9))
    assert len(table.most_confused(2)) == 2


def test_boxes_by_hand() -> None:
    def boxes(*rows: tuple[float, float, float, int], crowd: tuple[bool, ...] = ()) -> Detections:
        corners = torch.tensor([[left, top, left + side, top + side] for left, top, side, _ in rows]).float()
        return Detections(
            boxes=corners,
            labels=torch.tensor([row[3] for row in rows]),
            scores=torch.ones(len(rows)),
            areas=torch.tensor([float(row[2] ** 2) for row in rows]),
            is_crowd=torch.tensor(crowd or (False,) * len(rows)),
        )

    truth = boxes(
        (0, 0, 10, CELL),
        (20, 0, 40, FIBRE),
        (100, 100, 100, DROP),
        (0, 300, 50, CELL),
        crowd=(False,) * 3 + (True,),
    )
    result = boxes((0, 0, 9, CELL), (20, 0, 40, DROP), (0, 100, 96, CELL), (5, 305, 9, CELL))
    state = BoxConfusion(CATEGORIES)
    assert state.count(result, truth) == pytest.approx(1 / 5)  # the one in the crowd does not count
    assert np.array_equal(state.table().matrix, expected_matrix())
    assert state.table().by_size == SIZES


@pytest.mark.parametrize("seed", range(3))
def test_instances_agree_with_matched_precision(seed: int) -> None:
    random = np.random.default_rng(seed)
    state, measure = SegmentConfusion(CATEGORIES, flat=False), MatchedPrecision(CATEGORIES)
    for result, truth in (random_instances(random, (31, 43), largest=9) for _ in range(6)):
        plain = Segments(
            layers=truth.layers, labels=truth.labels, scores=truth.scores, is_crowd=truth.is_crowd & False
        )
        state.count(result, plain)
        measure.update(result, plain)
    counts = {
        outcome: sum(row[outcome] for row in state.table().by_size.values())
        for outcome in ("right", "confused", "missed", "false")
    }
    assert counts["right"] == measure.matched[0] == np.trace(state.table().matrix)
    assert counts["confused"] + counts["false"] == measure.wrong[0]
    assert counts["confused"] + counts["missed"] == measure.missed[0]


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_agrees_with_panoptic_quality(seed: int) -> None:
    random = np.random.default_rng(seed)
    state, measure = SegmentConfusion(CATEGORIES, flat=True), PanopticQuality(CATEGORIES)
    for result, truth in (random_pair(random) for _ in range(12)):
        state.count(result, truth)
        measure.update(result, truth)
    assert np.array_equal(np.diagonal(state.table().matrix)[:-1], measure.matched)


def test_pixels_are_those_of_the_mean_iou() -> None:
    truth = segments([[1, 1, 2, 2], [0, 1, 2, 2]], [CELL, SKY])
    result = segments([[1, 2, 2, 2], [1, 1, 0, 2]], [CELL, SKY])
    state = MeanIoU(CATEGORIES)
    assert state.count(result, truth) == pytest.approx((2 / 3 + 3 / 5) / 2)
    table = state.table()
    assert table.unit == "pixels"
    assert table.matrix[CELL] == (2, 1, 0, 0, 0, 0)
    assert table.matrix[SKY] == (0, 3, 0, 0, 0, 1)
    assert table.matrix[NOTHING] == (0,) * 6
    assert state.compute().mean_iou == pytest.approx((2 / 3 + 3 / 5) / 2)


def test_states_add() -> None:
    random = np.random.default_rng(5)
    pairs = [random_instances(random, (31, 43), largest=9) for _ in range(4)]
    whole = SegmentConfusion(CATEGORIES, flat=False)
    parts = [SegmentConfusion(CATEGORIES, flat=False) for _ in range(2)]
    for index, (result, truth) in enumerate(pairs):
        whole.count(result, truth)
        parts[index % 2].count(result, truth)
    parts[0].merge(parts[1])
    assert parts[0].table() == whole.table()


def test_an_image_without_anything_is_good() -> None:
    nothing = segments(np.zeros((4, 5)), [])
    for flat in (True, False):
        assert SegmentConfusion(CATEGORIES, flat=flat).count(nothing, nothing) == 1.0
    assert Confusion(unit="boxes", names=("a",), matrix=((1, 0), (0, 0)), by_size={}).most_confused(3) == []

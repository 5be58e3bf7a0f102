import pickle

import numpy as np
import pytest
from hotcoco.semantic import SemanticEval
from oracles.scenes import CATEGORIES, random_pair, segments
from oracles.slow_mean_iou import slow_ious

from unimask.metrics.mean_iou import MeanIoU, MeanIoUValues
from unimask.structures import Segments


def measured(pictures: list[tuple[Segments, Segments]]) -> MeanIoUValues:
    metric = MeanIoU(CATEGORIES)
    for result, truth in pictures:
        metric.update(result, truth)
    return metric.compute()


@pytest.mark.parametrize("seed", range(6))
def test_random_scenes_equal_the_oracle(seed: int) -> None:
    random = np.random.default_rng(seed)
    pictures = [random_pair(random, (11, 17)) for _ in range(1 + seed)]
    values = measured(pictures)
    ious, accuracy = slow_ious(pictures, len(CATEGORIES))
    assert values.per_class == pytest.approx([-1.0 if iou is None else iou for iou in ious], abs=1e-12)
    present = [iou for iou in ious if iou is not None]
    assert values.mean_iou == pytest.approx(sum(present) / len(present), abs=1e-12)
    assert values.pixel_accuracy == pytest.approx(accuracy, abs=1e-12)


def test_full_maps_equal_hotcoco() -> None:
    random = np.random.default_rng(3)
    other = SemanticEval(len(CATEGORIES), ignore_index=255)
    pictures = []
    for _ in range(4):
        truth, result = random.integers(0, 6, (29, 31)), random.integers(1, 6, (29, 31))
        labels = np.array([255, 0, 1, 2, 3, 4])
        other.update(labels[truth], labels[result])
        pictures.append((segments(result, [0, 1, 2, 3, 4]), segments(truth, [0, 1, 2, 3, 4])))
    values = measured(pictures)
    assert values.mean_iou == pytest.approx(other.results()["mIoU"], abs=1e-12)
    assert values.pixel_accuracy == pytest.approx(other.results()["aAcc"], abs=1e-12)


def test_by_hand() -> None:
    truth = segments(np.array([[1, 1, 1, 0, 2, 2]]), [0, 3])
    result = segments(np.array([[1, 1, 0, 1, 2, 1]]), [0, 4])
    values = measured([(result, truth)])
    assert values.per_class == pytest.approx((2 / 4, -1.0, -1.0, 0.0, 0.0))
    assert values.as_dict() == pytest.approx({"mIoU": 0.5 / 3, "pixel_accuracy": 2 / 5})


def test_several_segments_of_a_class_count_together() -> None:
    truth = segments(np.array([[1, 1, 2, 2]]), [0, 0], crowd=[True, False])
    result = segments(np.array([[1, 2, 2, 2]]), [0, 0])
    assert measured([(result, truth)]).as_dict() == {"mIoU": 1.0, "pixel_accuracy": 1.0}


def test_void_truth_measures_nothing() -> None:
    result, truth = segments(np.ones((3, 2)), [0]), segments(np.zeros((3, 2)), [])
    assert set(measured([(result, truth)]).as_dict().values()) == {-1.0}
    assert set(MeanIoU(CATEGORIES).compute().as_dict().values()) == {-1.0}


def test_merged_states_equal_one_state() -> None:
    random = np.random.default_rng(5)
    pictures = [random_pair(random) for _ in range(6)]
    first, second = MeanIoU(CATEGORIES), MeanIoU(CATEGORIES)
    for index, (result, truth) in enumerate(pictures):
        (first, second)[index % 2].update(result, truth)
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.compute() == measured(pictures)


def test_overlapping_segments_are_refused() -> None:
    overlapping = segments(np.ones((2, 3, 5)) * [[[1]], [[2]]], [0, 1])
    with pytest.raises(ValueError, match="overlap"):
        MeanIoU(CATEGORIES).update(overlapping, overlapping)

import pickle
from fractions import Fraction

import numpy as np
import pytest
from oracles.scenes import CATEGORIES, pack, random_instances, random_pair, segments
from oracles.slow_matched_precision import slow_matching

from unimask.metrics.matched_precision import THRESHOLDS, MatchedPrecision
from unimask.structures import Segments

Pictures = list[tuple[Segments, Segments]]


def measured(pictures: Pictures) -> MatchedPrecision:
    metric = MatchedPrecision(CATEGORIES)
    for result, truth in pictures:
        metric.update(result, truth)
    return metric


def assert_like_oracle(pictures: Pictures) -> None:
    metric = measured(pictures)
    values = metric.compute()
    assert values.thresholds == THRESHOLDS
    for index in range(9):
        threshold = Fraction(10 + index, 20)
        counts = [slow_matching(result, truth, CATEGORIES.is_thing, threshold) for result, truth in pictures]
        matched, wrong, missed = (sum(column) for column in zip(*counts))
        assert (metric.matched[index], metric.wrong[index], metric.missed[index]) == (matched, wrong, missed)
        shares = [m / (m + w + n) for m, w, n in counts if m + w + n]
        assert values.pooled[index] == pytest.approx(matched / (matched + wrong + missed), abs=1e-12)
        assert values.per_image[index] == pytest.approx(sum(shares) / len(shares), abs=1e-12)
        assert values.as_dict()[f"AP@{float(threshold):.2f}"] == values.pooled[index]
        assert values.as_dict()[f"AP_per_image@{float(threshold):.2f}"] == values.per_image[index]


@pytest.mark.parametrize("seed", range(4))
def test_disjoint_scenes_equal_the_oracle(seed: int) -> None:
    random = np.random.default_rng(seed)
    assert_like_oracle([random_pair(random, (17, 23)) for _ in range(8)])


@pytest.mark.parametrize("seed", range(4))
def test_overlapping_scenes_equal_the_oracle(seed: int) -> None:
    random = np.random.default_rng(seed)
    assert_like_oracle([random_instances(random, (31, 43), largest=9) for _ in range(5)])


def test_an_iou_on_the_threshold_is_a_match() -> None:
    truth_ids, result_ids = np.zeros((9, 20)), np.zeros((9, 20))
    for row in range(9):  # row r: IoU (10 + r) / 20
        truth_ids[row] = row + 1
        result_ids[row, : 10 + row] = row + 1
    pair = segments(result_ids, [0] * 9), segments(truth_ids, [0] * 9)
    matched = measured([pair]).matched.tolist()
    assert matched == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert_like_oracle([pair])


def test_as_many_pairs_as_possible_are_matched() -> None:
    """The best pair alone would leave two without a partner."""
    size = (1, 30)

    def span(start: int, stop: int) -> np.ndarray:
        mask = np.zeros(size, dtype=bool)
        mask[0, start:stop] = True
        return mask

    truth = segments(pack([span(0, 10), span(0, 13)], size), [0, 0])
    result = segments(pack([span(0, 11), span(6, 13), span(20, 21)], size), [0, 0, 0])
    assert measured([(result, truth)]).matched[0] == 2
    assert_like_oracle([(result, truth)])


def test_stuff_and_other_classes_do_not_match() -> None:
    ids = np.array([[1, 1, 2, 2, 3, 3]])
    metric = measured([(segments(ids, [0, 1, 2]), segments(ids, [0, 1, 4]))])
    assert (metric.matched[0], metric.wrong[0], metric.missed[0]) == (1, 1, 1)


def test_crowd_is_neither_found_nor_missed() -> None:
    truth = segments(np.array([[1, 1, 1, 1, 0, 0]]), [0], crowd=[True])
    inside = segments(np.array([[1, 1, 2, 0, 2, 2]]), [0, 0])
    metric = measured([(inside, truth)])
    assert (metric.matched[0], metric.wrong[0], metric.missed[0]) == (0, 1, 0)


def test_nothing_is_minus_one() -> None:
    empty = segments(np.zeros((3, 5)), [])
    for metric in (MatchedPrecision(CATEGORIES), measured([(empty, empty)])):
        assert set(metric.compute().as_dict().values()) == {-1.0}
    assert len(metric.compute().as_dict()) == 18


def test_segments_without_pixels_do_not_exist() -> None:
    nothing, one = segments(np.zeros((2, 3)), [0]), segments(np.ones((2, 3)), [0])
    assert measured([(nothing, one)]).wrong[0] == 0
    assert measured([(one, nothing)]).missed[0] == 0


def test_merged_states_equal_one_state() -> None:
    random = np.random.default_rng(6)
    pictures = [random_instances(random, (31, 43)) for _ in range(6)]
    first, second = measured(pictures[::2]), measured(pictures[1::2])
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.compute().as_dict() == pytest.approx(measured(pictures).compute().as_dict(), abs=1e-12)

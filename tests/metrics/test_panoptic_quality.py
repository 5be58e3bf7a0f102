import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.scenes import CATEGORIES, random_pair, segments
from oracles.slow_panoptic_quality import slow_counts, slow_quality

from unimask.metrics.panoptic_quality import PanopticQuality, PanopticQualityValues, Quality
from unimask.structures import Segments

THINGS, STUFF = [0, 2, 4], [1, 3]


def measured(pictures: list[tuple[Segments, Segments]]) -> PanopticQualityValues:
    metric = PanopticQuality(CATEGORIES)
    for result, truth in pictures:
        metric.update(result, truth)
    return metric.compute()


def numbers(quality: Quality) -> tuple[float, float, float, int]:
    return quality.panoptic, quality.segmentation, quality.recognition, quality.classes


def assert_like_oracle(pictures: list[tuple[Segments, Segments]]) -> None:
    values, counts = measured(pictures), slow_counts(pictures, len(CATEGORIES))
    for group, members in ((values.all, [*THINGS, *STUFF]), (values.things, THINGS), (values.stuff, STUFF)):
        assert numbers(group) == pytest.approx(slow_quality(counts, members), abs=1e-12)
    for label, quality in enumerate(values.per_class):
        assert numbers(quality) == pytest.approx(slow_quality(counts, [label]), abs=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_random_scenes_equal_the_oracle(seed: int) -> None:
    random = np.random.default_rng(seed)
    assert_like_oracle([random_pair(random) for _ in range(7)])


def test_random_scenes_have_matches_crowd_and_void() -> None:
    random = np.random.default_rng(0)
    pictures = [random_pair(random) for _ in range(40)]
    counts = slow_counts(pictures, len(CATEGORIES))
    assert sum(one.true_positives for one in counts) > 20
    assert sum(one.false_positives for one in counts) > 20
    assert sum(one.false_negatives for one in counts) > 20
    assert sum(int(truth.is_crowd.sum()) for _, truth in pictures) > 20
    assert all(bool((truth.layers == 0).any()) for _, truth in pictures)


@settings(max_examples=120, deadline=None, database=None)
@given(st.data())
def test_any_id_maps_equal_the_oracle(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 7))
    sides = []
    for crowded in (False, True):
        count = data.draw(st.integers(0, 5))
        ids = data.draw(st.lists(st.integers(0, count), min_size=height * width, max_size=height * width))
        labels = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
        flags = st.booleans() if crowded else st.just(False)
        crowd = data.draw(st.lists(flags, min_size=count, max_size=count))
        sides.append(segments(np.array(ids).reshape(height, width), labels, crowd=crowd))
    assert_like_oracle([(sides[0], sides[1])])


def test_iou_of_one_half_is_no_match() -> None:
    truth = segments(np.array([[1, 1, 1, 2, 2]]), [0, 1])
    result = segments(np.array([[1, 1, 0, 0, 2]]), [0, 1])
    values = measured([(result, truth)])
    assert numbers(values.per_class[0]) == pytest.approx((2 / 3, 2 / 3, 1.0, 1))
    assert numbers(values.per_class[1]) == (0.0, 0.0, 0.0, 1)


def test_void_pixels_do_not_count_in_the_union() -> None:
    truth = segments(np.array([[1, 1, 0, 0, 0]]), [0])
    result = segments(np.array([[1, 1, 1, 1, 0]]), [0])
    assert numbers(measured([(result, truth)]).all) == (1.0, 1.0, 1.0, 1)


def test_only_the_last_crowd_of_a_class_excuses() -> None:
    truth = segments(np.array([[1, 1, 2, 2, 3, 3, 3]]), [0, 0, 0], crowd=[True, True, False])
    result = segments(np.array([[1, 1, 2, 2, 3, 3, 3]]), [0, 0, 0])
    values = measured([(result, truth)])
    assert values.per_class[0].recognition == pytest.approx(1 / 1.5)  # the result in the first crowd is wrong


def test_half_void_is_not_enough_to_excuse() -> None:
    truth = segments(np.array([[1, 0, 0, 1]]), [1])
    half = segments(np.array([[1, 1, 0, 0]]), [0])
    more = segments(np.array([[1, 1, 1, 0]]), [0])
    assert measured([(half, truth)]).per_class[0].classes == 1
    assert measured([(more, truth)]).per_class[0].classes == 0


def test_an_empty_truth_is_missed_and_an_empty_result_is_nothing() -> None:
    truth = segments(np.zeros((2, 3)), [0])
    result = segments(np.zeros((2, 3)), [1, 3])
    values = measured([(result, truth)])
    assert numbers(values.per_class[0]) == (0.0, 0.0, 0.0, 1)
    assert values.stuff.classes == 0


def test_without_any_segment_everything_is_minus_one() -> None:
    empty = segments(np.zeros((3, 2)), [])
    for values in (PanopticQuality(CATEGORIES).compute(), measured([(empty, empty)])):
        assert set(values.as_dict().values()) == {-1.0}
        assert set(values.as_dict()) == {
            f"{q}{g}" for q in ("PQ", "SQ", "RQ") for g in ("", "_things", "_stuff")
        }


def test_merged_states_equal_one_state() -> None:
    random = np.random.default_rng(5)
    pictures = [random_pair(random) for _ in range(11)]
    first, second = PanopticQuality(CATEGORIES), PanopticQuality(CATEGORIES)
    for index, (result, truth) in enumerate(pictures):
        (first, second)[index % 2].update(result, truth)
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.compute().as_dict() == pytest.approx(measured(pictures).as_dict(), abs=1e-12)


def test_a_map_may_come_in_several_layers_that_do_not_overlap() -> None:
    random = np.random.default_rng(3)
    result, truth = random_pair(random)
    ids = result.layers[0].numpy()
    split = segments(np.stack([ids * (ids % 2 == 0), ids * (ids % 2 == 1)]), result.labels.tolist())
    assert measured([(split, truth)]) == measured([(result, truth)])


def test_huge_numbers_of_segments_are_counted_by_sorting() -> None:
    ids = np.arange(1, 3001).reshape(60, 50)
    many = segments(ids, [0] * 3000)
    values = measured([(many, many)])
    assert numbers(values.things) == (1.0, 1.0, 1.0, 1)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (segments(np.ones((3, 4)), [0]), r"3 x 4 pixels .* truth 3 x 5"),
        (segments(np.ones((3, 5)), [7]), "result has label 7; there are 5 categories"),
        (segments(np.ones((3, 5)), [-2]), "result has label -2"),
        (segments(np.full((3, 5), 4), [0]), "ids from 4 to 4 in its map, but 1 segments"),
        (segments(np.ones((2, 3, 5)) * [[[1]], [[2]]], [0, 1]), "segments overlap"),
    ],
)
def test_what_cannot_be_compared_is_refused(result: Segments, message: str) -> None:
    metric = PanopticQuality(CATEGORIES)
    with pytest.raises(ValueError, match=message):
        metric.update(result, segments(np.ones((3, 5)), [0]))
    assert metric.compute() == PanopticQuality(CATEGORIES).compute()  # nothing was counted


def test_other_categories_cannot_be_merged() -> None:
    other = type(CATEGORIES)(names=("a",), is_thing=(True,), file_ids=(1,), colors=((0, 0, 0),))
    with pytest.raises(ValueError, match="different categories"):
        PanopticQuality(CATEGORIES).merge(PanopticQuality(other))

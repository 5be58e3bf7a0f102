import numpy as np
import pytest
import torch

from unimask.results.drawing import contours, inner_point, overlay, segment_colors, short_name
from unimask.structures import Categories, Segments

CATEGORIES = Categories(
    names=("cell", "glass, drinking glass", "ground"),
    is_thing=(True, True, False),
    file_ids=(3, 5, 8),
    colors=((40, 90, 230), (240, 80, 20), (40, 160, 60)),
)


def segments(layers: np.ndarray, labels: list[int]) -> Segments:
    return Segments(
        layers=torch.from_numpy(layers.astype(np.int16)),
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.full((len(labels),), 0.875),
        is_crowd=torch.zeros(len(labels), dtype=torch.bool),
    )


def grey(height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), 100, dtype=torch.uint8)


def two_squares() -> np.ndarray:
    layer = np.zeros((1, 211, 307))
    layer[0, 20:100, 20:120] = 1
    layer[0, 120:200, 150:290] = 2
    return layer


def test_segments_are_filled_and_the_rest_is_untouched():
    picture = np.asarray(overlay(grey(211, 307), segments(two_squares(), [0, 2]), CATEGORIES))
    assert picture.shape == (211, 307, 3)
    assert (picture[:15] == 100).all()
    assert (picture[:, :15] == 100).all()
    blue, green = picture[30, 30].astype(int), picture[190, 160].astype(int)
    assert blue[2] > blue[0] + 40
    assert green[1] > green[0] + 20
    assert abs(picture[20, 60].astype(int) - blue).max() > 20  # the contour stands out
    assert abs(picture[21, 60].astype(int) - blue).max() <= 1  # and is thin


def test_a_label_is_written_into_a_segment_with_room():
    found = segments(two_squares(), [0, 2])
    plain = np.asarray(overlay(grey(211, 307), segments(two_squares(), [0, 2]), CATEGORIES))
    scored = np.asarray(overlay(grey(211, 307), found, CATEGORIES, scores=True))
    changed = np.argwhere((plain != scored).any(axis=2))
    assert len(changed)
    rows, columns = changed.T
    inside = two_squares()[0][rows, columns]
    assert (inside > 0).all()  # nothing is written outside of them


def test_many_instances_get_one_line_in_a_legend():
    layer = np.zeros((1, 223, 257))
    number = 0
    for top in range(5, 140, 30):
        for left in range(5, 240, 30):
            number += 1
            layer[0, top : top + 24, left : left + 24] = number
    picture = np.asarray(overlay(grey(223, 257), segments(layer, [0] * number), CATEGORIES))
    free = (layer[0] == 0) & (picture != 100).any(axis=2)
    rows, columns = np.nonzero(free)
    assert len(rows) > 300  # the legend
    assert rows.min() > 180  # in a lower corner
    assert columns.max() < 130


def test_instances_of_a_thing_differ_and_stuff_has_its_own_color():
    colors = segment_colors([0, 2, 0, 0, 1], CATEGORIES)
    assert len({tuple(color) for color in colors[[0, 2, 3]].tolist()}) == 3
    assert tuple(colors[1].tolist()) == CATEGORIES.colors[2]
    assert abs(colors[4].astype(int) - np.array(CATEGORIES.colors[1])).max() <= 1
    crowd = segment_colors([0] * 200, CATEGORIES)
    assert len({tuple(color) for color in crowd.tolist()}) > 190


def test_every_colour_can_be_varied():
    for color in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 255)):
        one = Categories(names=("a",), is_thing=(True,), file_ids=(1,), colors=(color,))
        assert segment_colors([0, 0, 0], one).shape == (3, 3)
        assert np.abs(segment_colors([0], one)[0].astype(int) - color).max() <= 1


def test_contours_lie_inside_and_not_on_the_border():
    layer = np.zeros((9, 11), dtype=np.int16)
    layer[0:5, 0:5] = 1
    layer[0:5, 5:8] = 2
    edge = contours(layer, 1)
    assert not edge[layer == 0].any()
    assert not edge[0, 0]
    assert edge[4, 0]
    assert edge[2, 4]
    assert edge[2, 5]
    assert not edge[2, 2]
    assert contours(layer, 2)[2, 3]


def test_the_inner_point_is_in_the_largest_piece():
    mask = np.zeros((101, 203), dtype=bool)
    mask[10:30, 10:30] = True
    mask[20:90, 90:190] = True
    row, column = inner_point(mask, (10, 30))
    assert 40 < row < 70
    assert 120 < column < 160
    assert inner_point(mask, (200, 400)) is None
    ring = np.hypot(*np.mgrid[-50:51, -50:51]) < 50
    ring &= np.hypot(*np.mgrid[-50:51, -50:51]) > 20
    assert ring[inner_point(ring, (8, 12))]


@pytest.mark.parametrize("size", [(1, 1), (3, 2003), (2003, 3), (17, 13), (40, 40)])
def test_any_size_can_be_drawn(size: tuple[int, int]):
    picture = overlay(grey(*size), segments(np.ones((1, *size)), [1]), CATEGORIES, scores=True)
    assert picture.size == (size[1], size[0])
    assert picture.mode == "RGB"


def test_empty_results_and_empty_segments():
    nothing = overlay(grey(31, 37), segments(np.zeros((1, 31, 37)), []), CATEGORIES)
    assert (np.asarray(nothing) == 100).all()
    hollow = overlay(grey(31, 37), segments(np.zeros((1, 31, 37)), [0, 1]), CATEGORIES)
    assert (np.asarray(hollow) == 100).all()


def test_overlapping_instances_are_all_drawn():
    layers = np.zeros((2, 61, 67))
    layers[0, 5:30, 5:30] = 1
    layers[1, 20:50, 20:50] = 2
    picture = np.asarray(overlay(grey(61, 67), segments(layers, [0, 1]), CATEGORIES))
    assert (picture[7:19, 7:19] != 100).any(axis=2).all()
    assert (picture[40:49, 25:49] != 100).any(axis=2).all()


def test_short_names():
    assert short_name("glass, drinking glass") == "glass"
    assert short_name("person") == "person"
    assert len(short_name("a" * 60)) == 24

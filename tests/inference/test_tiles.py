from itertools import pairwise

import pytest
import torch

from unimask.inference.stitching import stitch
from unimask.inference.tiles import Tile, grid, whole
from unimask.structures import Segments

NOTHING = torch.tensor([False, False])
BACKGROUND = torch.tensor([False, True])


def segments(layers: torch.Tensor, labels: list[int], scores: list[float]) -> Segments:
    return Segments(
        layers=layers.to(torch.int16),
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor(scores),
        is_crowd=torch.zeros(len(labels), dtype=torch.bool),
    )


def seen(picture: Segments, tile: Tile) -> Segments:
    """What a perfect model sees in a tile: the segments with pixels there, numbered from the last on."""
    layers = picture.layers[:, tile.window[0], tile.window[1]]
    numbers = [n for n in layers.unique().tolist() if n][::-1]
    table = torch.zeros(len(picture) + 1, dtype=torch.int16)
    for index, number in enumerate(numbers):
        table[number] = index + 1
    index = torch.tensor(numbers, dtype=torch.int64) - 1
    return segments(table[layers.long()], picture.labels[index].tolist(), picture.scores[index].tolist())


@pytest.mark.parametrize(
    ("size", "side", "overlap"),
    [((101, 67), 32, 8), ((33, 31), 32, 8), ((7, 300), 32, 31), ((256, 256), 160, 64)],
)
def test_cores_cover_each_pixel_once_and_neighbours_overlap(
    size: tuple[int, int], side: int, overlap: int
) -> None:
    counts = torch.zeros(size, dtype=torch.int64)
    tiles = grid(size, side, overlap)
    for tile in tiles:
        counts[tile.core] += 1
        assert tile.size == (min(side, size[0]), min(side, size[1]))
        for core, window in zip(tile.core, tile.window):
            assert window.start <= core.start < core.stop <= window.stop
    assert (counts == 1).all()
    starts = sorted({tile.window[1].start for tile in tiles})
    assert all(after - before <= side - overlap for before, after in pairwise(starts))


def test_a_perfect_model_gives_the_picture_back() -> None:
    generator = torch.Generator().manual_seed(3)
    layers = torch.zeros(1, 97, 131, dtype=torch.int16)
    count = 0
    for top in range(2, 85, 16):
        for left in range(3, 118, 17):
            height, width = torch.randint(3, 13, (2,), generator=generator).tolist()
            count += 1
            layers[0, top : top + height, left : left + width] = count
    scores = torch.rand(count, generator=generator).tolist()
    picture = segments(layers, [0] * count, scores)
    tiles = grid(picture.size, 48, 16)
    assert len(tiles) == 12
    joined = stitch([(tile, seen(picture, tile)) for tile in tiles], picture.size, NOTHING, overlapping=True)
    assert len(joined) == count
    assert torch.equal(joined.layers > 0, picture.layers > 0)
    pairs = torch.stack([joined.layers.flatten(), picture.layers.flatten()]).unique(dim=1)
    assert pairs.shape[1] == count + 1  # one number there for each here
    assert joined.scores.tolist() == pytest.approx(sorted(scores, reverse=True))


def test_stuff_is_one_segment_and_a_large_thing_is_joined_over_many_tiles() -> None:
    layers = torch.full((1, 90, 90), 2)
    layers[0, 10:80, 20:70] = 1
    picture = segments(layers, [0, 1], [0.75, 0.5])
    tiles = grid(picture.size, 40, 12)
    joined = stitch(
        [(tile, seen(picture, tile)) for tile in tiles], picture.size, BACKGROUND, overlapping=False
    )
    assert torch.equal(joined.layers, picture.layers.to(torch.int16))
    assert joined.labels.tolist() == [0, 1]


def test_a_semantic_result_of_tiles_is_that_of_the_picture() -> None:
    layers = torch.full((1, 90, 97), 2)
    layers[0, 38:44, 40:52] = 1  # in the overlap of all tiles, so its part in any core is small
    picture = segments(layers, [1, 0], [0.75, 0.5])
    tiles = grid(picture.size, 60, 30)
    everything = torch.tensor([True, True])
    joined = stitch(
        [(tile, seen(picture, tile)) for tile in tiles], picture.size, everything, overlapping=False
    )
    assert torch.equal(joined.layers, picture.layers.to(torch.int16))
    assert joined.labels.tolist() == [1, 0]
    assert torch.equal(joined.areas(), picture.areas())


def test_things_are_not_joined_across_categories_nor_where_they_disagree() -> None:
    left, right = grid((20, 60), 40, 20)
    one, other = torch.zeros(1, 20, 40), torch.zeros(1, 20, 40)
    one[0, 2:8, 22:36] = 1  # the right tile sees the same pixels, but calls them something else
    other[0, 2:8, 2:16] = 1
    one[0, 12:18, 10:26] = 2  # the right tile sees another object nearby
    other[0, 16:19, 4:30] = 2
    parts = [(left, segments(one, [0, 0], [0.5, 0.6])), (right, segments(other, [1, 0], [0.7, 0.8]))]
    joined = stitch(parts, (20, 60), NOTHING, overlapping=True)
    assert joined.labels.tolist() == [0, 1, 0, 0]
    assert joined.scores.tolist() == pytest.approx([0.8, 0.7, 0.6, 0.5])
    apart = stitch(parts, (20, 60), NOTHING, overlapping=False)
    assert apart.labels.tolist() == [0, 1, 0]  # no pixel is left for the worse of two that lie in one place
    assert apart.scores.tolist() == pytest.approx([0.8, 0.7, 0.6])


def views_of_one_place(*found: list[tuple[int, float]]) -> Segments:
    """Three tiles see columns 20 to 36 of a picture whole; each finds some columns up to 32, or nothing."""
    core = slice(0, 0), slice(0, 0)
    tiles = [Tile(window=(slice(0, 12), slice(start, start + 30)), core=core) for start in (8, 12, 16)]
    parts = []
    for tile, things in zip(tiles, found, strict=True):
        layer = torch.zeros(1, 12, 30)
        for number, (first, _) in enumerate(things):
            start = tile.window[1].start
            layer[0, 3:9, first - start : 32 - start] = number + 1
        parts.append((tile, segments(layer, [0] * len(things), [score for _, score in things])))
    return stitch(parts, (12, 60), NOTHING, overlapping=False)


def test_the_majority_of_the_tiles_decides() -> None:
    assert len(views_of_one_place([(20, 0.9)], [], [])) == 0
    two = views_of_one_place([(20, 0.9)], [], [(20, 0.5)])
    assert two.scores.tolist() == pytest.approx([0.7])
    assert two.areas().tolist() == [6 * 12]
    three = views_of_one_place([(20, 0.5)], [(22, 0.9)], [(23, 0.8)])
    assert three.scores.tolist() == pytest.approx([2.2 / 3])
    assert three.layers[0, 5, 18:34].tolist() == [0] * 4 + [1] * 10 + [0] * 2  # where 1.1 of 2.2 is passed


def test_a_piece_cut_off_by_a_border_is_dropped() -> None:
    left, right = grid((10, 60), 40, 20)
    one = torch.zeros(1, 10, 40)
    one[0, 2:8, 34:40] = 1  # outside the left tile's core, and the right tile does not see it at all
    empty = segments(torch.zeros(1, 10, 40), [], [])
    parts = [(left, segments(one, [0], [0.9])), (right, empty)]
    assert len(stitch(parts, (10, 60), NOTHING, overlapping=True)) == 0


def test_overlapping_instances_stay_whole() -> None:
    layers = torch.zeros(2, 30, 80)
    layers[0, 5:25, 10:50] = 1
    layers[1, 10:20, 30:70] = 2
    picture = segments(layers, [0, 0], [0.9, 0.8])
    tiles = grid(picture.size, 48, 24)
    joined = stitch([(tile, seen(picture, tile)) for tile in tiles], picture.size, NOTHING, overlapping=True)
    assert torch.equal(joined.masks(), picture.masks())


def test_one_tile_is_passed_on_as_it_is() -> None:
    picture = segments(torch.ones(1, 5, 7), [1], [0.5])
    assert stitch([(whole((5, 7))[0], picture)], (5, 7), BACKGROUND, overlapping=False) is picture

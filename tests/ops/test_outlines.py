import numpy as np
import pytest
from jaxtyping import Bool
from numpy import ndarray

from unimask.data.rasterise import shape_pixels
from unimask.ops.outlines import one_ring, outlines, signed_area


def filled(ring: ndarray, size: tuple[int, int]) -> Bool[ndarray, "height width"]:
    mask = np.zeros(size, dtype=bool)
    mask.flat[shape_pixels((ring.ravel(),), size)] = True
    return mask


def test_rings_of_a_part_with_a_hole() -> None:
    mask = np.zeros((7, 11), dtype=bool)
    mask[1:6, 2:9] = True
    mask[3:5, 4:6] = False
    ((outer, hole),) = outlines(mask)
    assert sorted(map(tuple, outer.tolist())) == [(2, 1), (2, 6), (9, 1), (9, 6)]
    assert sorted(map(tuple, hole.tolist())) == [(4, 3), (4, 5), (6, 3), (6, 5)]
    assert signed_area(outer) == 35
    assert signed_area(hole) == -4


def test_pixels_that_touch_at_a_corner_are_parts_of_their_own() -> None:
    parts = outlines(np.eye(3, dtype=bool))
    assert len(parts) == 3
    assert all(signed_area(ring) == 1 for (ring,) in parts)
    assert outlines(np.zeros((3, 4), dtype=bool)) == []


@pytest.mark.parametrize("seed", range(20))
def test_areas_add_up_to_the_pixels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random(generator.integers(1, 31, 2)) < generator.random()
    parts = outlines(mask)
    assert sum(signed_area(ring) for part in parts for ring in part) == mask.sum()
    for outer, *holes in parts:
        assert signed_area(outer) > 0
        assert all(signed_area(hole) < 0 for hole in holes)


@pytest.mark.parametrize("seed", range(10))
def test_one_ring_covers_the_same_pixels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = np.kron(generator.random((5, 7)) < 0.5, np.ones((4, 4))).astype(bool)
    mask[4:8, 4:8] = True
    ring = one_ring([ring for part in outlines(mask) for ring in part])
    assert signed_area(ring) == mask.sum()
    assert (filled(ring, mask.shape) != mask).mean() < 0.02  # pycocotools rounds slanted bridges


@pytest.mark.parametrize("seed", range(20))
def test_each_part_is_a_valid_polygon(seed: int) -> None:
    """Also where pixels of a part, or of its holes, meet at a corner."""
    shapely = pytest.importorskip("shapely", reason="shapely is not installed")
    generator = np.random.default_rng(seed)
    mask = generator.random(generator.integers(2, 25, 2)) < 0.7
    for outer, *holes in outlines(mask):
        assert shapely.is_valid(shapely.Polygon(outer, holes))

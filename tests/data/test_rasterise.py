import hotcoco
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference

from unimask.data.rasterise import LayerPainter, shape_pixels, unpack_run_lengths
from unimask.ops.id_maps import pack_masks

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools


def dense(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    mask = np.zeros(height * width, dtype=np.uint8)
    mask[pixels] = 1
    return mask.reshape(height, width)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 37), st.integers(1, 41), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_decode_as_pycocotools_does(height: int, width: int, seed: int, share: float) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    packed = reference.encode(np.asfortranarray(mask))["counts"]
    assert np.array_equal(dense(shape_pixels(packed, (height, width)), height, width), mask)
    assert np.array_equal(dense(shape_pixels(packed.decode(), (height, width)), height, width), mask)
    column = mask.T.ravel()
    changes = np.flatnonzero(np.diff(np.concatenate(([0], column)))).tolist()
    plain = np.diff([0, *changes, column.size])
    assert np.array_equal(dense(shape_pixels(plain, (height, width)), height, width), mask)
    assert unpack_run_lengths(packed).sum() == height * width


def test_large_numbers_in_run_lengths() -> None:
    mask = np.zeros((3001, 997), dtype=np.uint8)
    mask[5:2900, 3:990] = 1
    packed = reference.encode(np.asfortranarray(mask))["counts"]
    assert np.array_equal(dense(shape_pixels(packed, mask.shape), *mask.shape), mask)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-20, 60, width=32), min_size=6, max_size=16).filter(
            lambda ring: len(ring) % 2 == 0
        ),
        min_size=1,
        max_size=3,
    )
)
def test_polygons_are_drawn_as_pycocotools_draws_them(rings: list[list[float]]) -> None:
    height, width = 29, 37
    expected = reference.decode(reference.merge(reference.frPyObjects(rings, height, width)))
    shape = tuple(np.array(ring) for ring in rings)
    assert np.array_equal(dense(shape_pixels(shape, (height, width)), height, width), expected)


def test_damaged_run_lengths() -> None:
    for packed in ("zz~~~", "\x01\x02", "é", b"\xff", "PPPPPPPPPPPPPPPPPP0", "P"):
        with pytest.raises(ValueError, match="run lengths"):
            shape_pixels(packed, (3, 4))
    with pytest.raises(ValueError, match="302 pixels, the image has 12"):
        shape_pixels(np.array([2, 300]), (3, 4))
    with pytest.raises(ValueError, match="negative"):
        shape_pixels(np.array([2, -1, 3]), (3, 4))
    assert shape_pixels("", (3, 4)).size == 0
    assert shape_pixels(np.array([2, 3]), (3, 4)).tolist() == [8, 1, 5]  # down the columns


def test_painter_opens_a_layer_only_on_overlap() -> None:
    painter = LayerPainter((2, 5))
    for pixels in ([0, 1], [3, 4], [1, 2], [], [5, 6], [0, 9]):
        painter.add(np.array(pixels, dtype=np.int64))
    layers = painter.result()
    assert layers.dtype == torch.int16
    assert layers[0].tolist() == [[1, 1, 0, 2, 2], [5, 5, 0, 0, 0]]
    assert layers[1].tolist() == [[6, 3, 3, 0, 0], [0, 0, 0, 0, 6]]


def test_painter_packs_as_pack_masks_does() -> None:
    masks = torch.rand((9, 11, 13), generator=torch.Generator().manual_seed(0)) < 0.07
    painter = LayerPainter((11, 13))
    for mask in masks:
        painter.add(mask.flatten().nonzero()[:, 0].numpy())
    assert painter.result().shape[0] > 1
    assert torch.equal(painter.result(), pack_masks(masks))


def test_painter_counts_its_segments() -> None:
    painter = LayerPainter((1, 1))
    painter.count = 32767
    with pytest.raises(ValueError, match="32767"):
        painter.add(np.array([0]))


def test_the_run_time_decoder_agrees_with_the_dense_one() -> None:
    mask = np.random.default_rng(1).random((19, 23)) < 0.4
    packed = hotcoco.mask.encode(mask.astype(np.uint8))
    assert np.array_equal(dense(shape_pixels(packed["counts"], mask.shape), *mask.shape), mask)

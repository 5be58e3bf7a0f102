import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from unimask.ops.id_maps import (
    LayerPacker,
    boxes_from_layers,
    pack_masks,
    pairwise_binary_cross_entropy,
    pairwise_dice,
    renumber,
)
from unimask.structures import Segments


def segments_of(masks: Tensor) -> Segments:
    count = masks.shape[0]
    return Segments(
        layers=pack_masks(masks),
        labels=torch.arange(count) + 10,
        scores=torch.linspace(0.1, 0.9, count),
        is_crowd=torch.arange(count) % 2 == 0,
    )


def random_masks(count: int, height: int, width: int, seed: int, density: float = 0.2) -> Tensor:
    return torch.rand((count, height, width), generator=torch.Generator().manual_seed(seed)) < density


@given(st.integers(0, 9), st.integers(1, 13), st.integers(1, 11), st.integers(0, 999), st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_packing_loses_nothing(count: int, height: int, width: int, seed: int, density: float) -> None:
    masks = random_masks(count, height, width, seed, density)
    segments = segments_of(masks)
    assert torch.equal(segments.masks(), masks)
    for number in range(1, count + 1):
        assert (segments.layers == number).flatten(1).any(1).sum() <= 1


def test_masks_without_overlap_share_a_layer() -> None:
    numbers = torch.randint(0, 6, (17, 13), generator=torch.Generator().manual_seed(3))
    masks = numbers == torch.arange(1, 6)[:, None, None]
    layers = pack_masks(masks)
    assert layers.shape == (1, 17, 13)
    assert torch.equal(layers[0].long(), numbers)


def test_a_mask_goes_to_the_first_layer_with_room() -> None:
    masks = torch.zeros((4, 3, 7), dtype=torch.bool)
    masks[0, :, :4] = masks[1, :, 2:5] = masks[2, :, 5:] = masks[3, :, 0] = True
    layers = pack_masks(masks)
    assert layers.shape[0] == 2
    assert layers[:, 0].tolist() == [[1, 1, 1, 1, 0, 3, 3], [4, 0, 2, 2, 2, 0, 0]]


def test_there_is_a_layer_without_masks() -> None:
    layers = pack_masks(torch.zeros((0, 5, 3), dtype=torch.bool))
    assert layers.shape == (1, 5, 3)
    assert layers.dtype == torch.int16
    assert not layers.any()


def test_too_many_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="32768 segments"):
        pack_masks(torch.zeros((32768, 1, 1), dtype=torch.bool))


@given(st.integers(0, 7), st.integers(1, 13), st.integers(1, 11), st.integers(0, 999))
@settings(deadline=None, max_examples=50)
def test_boxes_are_tight(count: int, height: int, width: int, seed: int) -> None:
    masks = random_masks(count, height, width, seed, 0.05)
    boxes = boxes_from_layers(pack_masks(masks), count)
    assert boxes.shape == (count, 4)
    for mask, box in zip(masks, boxes.tolist(), strict=True):
        expected = [0, 0, 0, 0]
        if mask.any():
            y, x = mask.nonzero(as_tuple=True)
            left, top = int(x.min()), int(y.min())
            expected = [left, top, int(x.max()) - left + 1, int(y.max()) - top + 1]
        assert box == expected


def test_renumbering_keeps_the_order_and_drops_pixels() -> None:
    masks = random_masks(7, 11, 5, seed=1)
    segments = segments_of(masks)
    keep = torch.tensor([True, False, True, True, False, False, True])
    kept = renumber(segments, keep)
    assert torch.equal(kept.masks(), masks[keep])
    assert torch.equal(kept.labels, segments.labels[keep])
    assert torch.equal(kept.scores, segments.scores[keep])
    assert torch.equal(kept.is_crowd, segments.is_crowd[keep])
    assert kept.layers.dtype == torch.int16
    assert kept.layers.flatten(1).any(1).all()


def test_renumbering_to_nothing_leaves_one_empty_layer() -> None:
    segments = segments_of(random_masks(5, 7, 11, seed=2))
    assert segments.layers.shape[0] > 1
    nothing = renumber(segments, torch.zeros(5, dtype=torch.bool))
    assert nothing.layers.shape == (1, 7, 11)
    assert not nothing.layers.any()
    assert len(nothing) == 0


def test_renumbering_without_segments() -> None:
    nothing = segments_of(torch.zeros((0, 3, 2), dtype=torch.bool))
    assert renumber(nothing, torch.zeros(0, dtype=torch.bool)).layers.shape == (1, 3, 2)


def test_pairwise_costs_are_those_of_each_pair() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn((7, 31), generator=generator) * 4
    labels = torch.rand((3, 31), generator=generator)
    cross_entropy, dice = pairwise_binary_cross_entropy(logits, labels), pairwise_dice(logits, labels)
    assert cross_entropy.shape == dice.shape == (7, 3)
    for query in range(7):
        for target in range(3):
            expected = functional.binary_cross_entropy_with_logits(logits[query], labels[target])
            torch.testing.assert_close(cross_entropy[query, target], expected)
            p, y = logits[query].sigmoid(), labels[target]
            expected = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
            torch.testing.assert_close(dice[query, target], expected)


def test_pairwise_costs_of_extreme_logits_are_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 1e4], [-1e4, 1e4, -1e4]])
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    cross_entropy = pairwise_binary_cross_entropy(logits, labels)
    torch.testing.assert_close(cross_entropy, torch.tensor([[0.0], [1e4]]))
    torch.testing.assert_close(pairwise_dice(logits, labels), torch.tensor([[0.0], [1 - 1 / 4]]))


def test_costs_without_targets_have_no_columns() -> None:
    logits, labels = torch.randn(5, 7), torch.zeros(0, 7)
    assert pairwise_binary_cross_entropy(logits, labels).shape == (5, 0)
    assert pairwise_dice(logits, labels).shape == (5, 0)


def test_copies_of_a_segment_need_not_look_at_earlier_layers() -> None:
    packer = LayerPacker((19, 23), torch.device("cpu"))
    mask = torch.ones(3, 5, dtype=torch.bool)
    window, other = (slice(9, 12), slice(1, 6)), (slice(0, 3), slice(17, 22))
    first = packer.add(1, [(mask, window)])
    second = packer.add(2, [(mask, window)], first + 1)
    assert (first, second, packer.add(3, [(mask, other)])) == (0, 1, 0)
    layers = packer.layers()
    assert layers.shape == (2, 19, 23)
    assert layers[0].unique().tolist() == [0, 1, 3]
    assert (layers[1][window] == 2).all()


def test_many_layers_come_from_several_blocks_and_start_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimask.ops.id_maps.BLOCK", 3 * 5 * 7 * 2)  # four layers at once
    packer = LayerPacker((5, 7), torch.device("cpu"))
    everywhere = torch.ones(5, 7, dtype=torch.bool)
    corner = (torch.ones(2, 3, dtype=torch.bool), (slice(0, 2), slice(4, 7)))
    found = [packer.add(2 * n + 1, [corner]) for n in range(6)]
    assert found == list(range(6))
    assert packer.add(20, [(everywhere, (slice(0, 5), slice(0, 7)))]) == 6
    layers = packer.layers()
    assert layers.shape == (7, 5, 7)
    for index, layer in enumerate(layers[:6]):
        assert layer.count_nonzero() == 6
        assert (layer[:2, 4:] == 2 * index + 1).all()
    assert (layers[6] == 20).all()

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from unimask.ops.id_maps import pack_masks
from unimask.ops.points import (
    logits_at_shared_points,
    sample_all_labels,
    sample_features,
    sample_labels,
    sample_maps,
    uncertain_points,
)
from unimask.ops.positions import cell_centers


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def grid_sample(maps: Tensor, points: Tensor) -> Tensor:
    return functional.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


def random_points(*shape: int, seed: int = 0) -> Tensor:
    """Uniform points, and with them the corners, where half of the weight lies outside."""
    points = torch.rand((*shape, 2), generator=torch.Generator().manual_seed(seed))
    points[..., 0, :] = 0.0
    points[..., 1, :] = 1.0
    points[..., 2, 0] = 1 - 2**-24
    return points


def random_masks(count: int, height: int, width: int, seed: int) -> Tensor:
    """Overlapping blobs: rectangles with some noise."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand((count, 4), generator=generator)
    y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
    low, high = ends[:, :2].minimum(ends[:, 2:]), ends[:, :2].maximum(ends[:, 2:])
    inside = (y >= low[:, 0, None, None]) & (y <= high[:, 0, None, None])
    inside = inside & (x >= low[:, 1, None, None]) & (x <= high[:, 1, None, None])
    return inside ^ (torch.rand((count, height, width), generator=generator) < 0.1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_features_at_points_are_bilinear(memory_format: torch.memory_format) -> None:
    features = torch.randn(3, 5, 7, 11).contiguous(memory_format=memory_format).requires_grad_()
    points = random_points(3, 53)
    values, expected = sample_features(features, points), grid_sample(features, points)
    torch.testing.assert_close(values, expected)
    weights = torch.randn_like(values)
    (gradient,) = torch.autograd.grad((values * weights).sum(), features)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), features)
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_map_of_one_pixel() -> None:
    features, points = torch.full((1, 2, 1, 1), 3.0), random_points(1, 7)
    torch.testing.assert_close(sample_features(features, points), grid_sample(features, points))


@pytest.mark.parametrize("num_points", [13, 211], ids=["fewer points than cells", "more"])
def test_logits_of_all_queries_at_shared_points(num_points: int) -> None:
    embeddings, features = torch.randn(7, 5), torch.randn(5, 11, 13)
    points = random_points(num_points)
    logits = torch.einsum("qc,chw->qhw", embeddings, features)
    expected = grid_sample(logits[None], points[None])[0]
    torch.testing.assert_close(
        logits_at_shared_points(embeddings, features, points), expected, rtol=1e-4, atol=1e-5
    )


def test_each_map_at_its_own_points() -> None:
    maps, points = torch.randn(5, 7, 11, requires_grad=True), random_points(5, 53)
    values, expected = sample_maps(maps, points), grid_sample(maps[:, None], points)[:, 0]
    torch.testing.assert_close(values, expected)
    weights = torch.randn_like(values)
    (gradient,) = torch.autograd.grad((values * weights).sum(), maps)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), maps)
    torch.testing.assert_close(gradient, expected_gradient)


def test_sampling_maps_keeps_no_maps() -> None:
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    maps, points = torch.randn(5, 97, 89, requires_grad=True), random_points(5, 13)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sample_maps(maps, points).sum().backward()
    assert kept == [(5, 13, 2)]


def test_no_maps_and_no_points() -> None:
    maps = torch.randn(0, 7, 11, requires_grad=True)
    values = sample_maps(maps, torch.rand(0, 13, 2))
    assert values.shape == (0, 13)
    values.sum().backward()
    assert maps.grad is not None
    assert sample_maps(torch.randn(3, 7, 11), torch.rand(3, 0, 2)).shape == (3, 0)


def test_cell_centers_are_where_maps_have_their_values() -> None:
    maps = torch.randn(2, 7, 11)
    centers = cell_centers(7, 11)
    values = sample_maps(maps, centers.expand(2, -1, -1))
    torch.testing.assert_close(values, maps.flatten(1), rtol=1e-5, atol=1e-5)


sizes = st.tuples(st.integers(0, 6), st.integers(1, 37), st.integers(1, 31))


@given(sizes, st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_labels_of_all_segments_are_those_of_dense_masks(size: tuple[int, int, int], seed: int) -> None:
    masks, points = random_masks(*size, seed), random_points(41, seed=seed)
    labels = sample_all_labels(pack_masks(masks), size[0], points)
    expected = grid_sample(masks[None].float(), points[None])[0] if size[0] else torch.zeros(0, 41)
    torch.testing.assert_close(labels, expected, rtol=0, atol=1e-5)


@given(sizes, st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_labels_of_some_segments_are_those_of_dense_masks(size: tuple[int, int, int], seed: int) -> None:
    masks = random_masks(*size, seed)
    chosen = torch.randperm(size[0], generator=torch.Generator().manual_seed(seed))[: size[0] // 2 + 1]
    points = random_points(len(chosen), 41, seed=seed)
    labels = sample_labels(pack_masks(masks), chosen + 1, points)
    expected = grid_sample(masks[chosen, None].float(), points)[:, 0] if size[0] else torch.zeros(0, 41)
    torch.testing.assert_close(labels, expected, rtol=0, atol=1e-5)


def test_labels_in_several_layers() -> None:
    masks = torch.ones((3, 5, 7), dtype=torch.bool)
    layers = pack_masks(masks)
    assert layers.shape[0] == 3
    points = 0.2 + 0.6 * torch.rand(3, 11, 2)
    assert torch.equal(sample_labels(layers, torch.tensor([3, 1, 2]), points), torch.ones(3, 11))
    torch.testing.assert_close(sample_all_labels(layers, 3, points[0]), torch.ones(3, 11))


def test_the_least_certain_candidates_are_chosen() -> None:
    maps, candidates = torch.randn(3, 11, 7), torch.rand(3, 53, 2)
    chosen = uncertain_points(maps, candidates, 17)
    assert chosen.shape == (3, 17, 2)
    certainty = grid_sample(maps[:, None], candidates)[:, 0].abs()
    for index in range(3):
        expected = candidates[index][certainty[index].argsort()[:17]]
        assert sorted(chosen[index].tolist()) == sorted(expected.tolist())


def test_no_candidate_is_chosen_where_none_is_wanted() -> None:
    assert uncertain_points(torch.randn(3, 11, 7), torch.rand(3, 53, 2), 0).shape == (3, 0, 2)
    assert uncertain_points(torch.randn(0, 11, 7), torch.rand(0, 53, 2), 5).shape == (0, 5, 2)
